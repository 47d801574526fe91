# make demo   set up, draw the demo study and train its pilot
# make test   set up, then lint, types and all tests that need no GPU
# make check  lint and types only
# make clean  remove what the others made, trained demo adapters included

PYTHON ?= python3
BIN := .venv/bin
DEMO := data/demo
TUNE := $(BIN)/apply_tuning --pilot --data-root $(DEMO)/style_mimicry \
	--pretrained-model-name-or-path $(DEMO)/tiny_sd3 --resolution 64 --max-train-steps 40 --no-push-to-hub

.PHONY: demo test check clean

demo: .venv/.installed
	$(BIN)/mimicry-demo $(DEMO)
	@echo "== Original art"
	$(TUNE)
	@echo "== Protected by mist (an imitation), then countered by noisy_upscaling (an imitation)"
	$(TUNE) --protection mist --countermeasure noisy_upscaling
	@echo "== The first command again: what is complete is skipped"
	$(TUNE)

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info $(DEMO) .mypy_cache .ruff_cache .pytest_cache

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
