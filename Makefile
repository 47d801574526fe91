# make demo   set up, draw the demo study, train its pilot in three conditions, draw with what was learnt
# make test   set up, then lint, types and all tests that need no GPU
# make check  lint and types only
# make clean  remove what the others made, trained demo adapters included

PYTHON ?= python3
BIN := .venv/bin
DEMO := data/demo
MODEL := --data-root $(DEMO)/style_mimicry --pretrained-model-name-or-path $(DEMO)/tiny_sd3
TUNE := $(BIN)/apply_tuning --pilot $(MODEL) \
	--resolution 64 --learning-rate 3e-3 --max-train-steps 120 \
	--train-batch-size 4 --gradient-accumulation-steps 1 --max-sequence-length 24 \
	--mixed-precision no --no-gradient-checkpointing --no-push-to-hub

.PHONY: demo test check clean

demo: .venv/.installed
	$(BIN)/mimicry-demo $(DEMO)
	@echo "== Original art"
	$(TUNE)
	@echo "== Protected by mist, in miniature"
	$(TUNE) --protection mist
	@echo "== Protected by mist, then countered by noisy upscaling, in miniature"
	$(TUNE) --protection mist --countermeasure noisy_upscaling
	@echo "== What the adapters paint, and what the base model paints"
	$(BIN)/mimicry-samples --pilot $(MODEL) --resolution 64 --mixed-precision no \
		--max-sequence-length 24 --seed 3 --steps 15 --guidance 3 --contact-sheet $(DEMO)/contact_sheet.png

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
