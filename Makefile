# `make` alone prints what there is.

PYTHON ?= python3
BIN := .venv/bin
DEMO := data/demo
STUDY := --data-root $(DEMO)/style_mimicry
TUNE := $(BIN)/apply_tuning --pilot $(STUDY) --pretrained-model-name-or-path $(DEMO)/tiny_sd3 \
	--resolution 64 --learning-rate 3e-3 --max-train-steps 120 \
	--train-batch-size 4 --gradient-accumulation-steps 1 --max-sequence-length 24 \
	--hold-out 4 --mixed-precision no --no-gradient-checkpointing --no-push-to-hub
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
# What trains, paints or kills: minutes, where the rest takes one.
SLOW := $(addprefix --ignore=tests/,tuning/hf_diffusers tuning/test_end_to_end.py demo tools chaos)

.PHONY: help demo test test-fast check clean

help:
	@echo "make demo       set up .venv, draw a small study, train its pilot in three conditions, draw with it"
	@echo "make test       set up .venv, then lint, types and all tests that need no GPU"
	@echo "make test-fast  the inner loop: all tests but those of the trainer and the demo, a minute and a half"
	@echo "make check      lint and types only"
	@echo "make clean      remove what the others made, the demo's trained adapters included"
	@echo "Another Python: make demo PYTHON=python3.13"

demo: .venv/.installed
	$(BIN)/mimicry demo $(DEMO)
	@echo "== Original art"
	$(TUNE)
	@echo "== Protected by mist, in miniature"
	$(TUNE) --protection mist
	@echo "== Protected by mist, then countered by noisy upscaling, in miniature"
	$(TUNE) --protection mist --countermeasure noisy_upscaling
	@echo "== What the adapters paint, and what the base model paints"
	$(BIN)/mimicry samples --pilot $(STUDY) --seed 3 --steps 15 --guidance 3 \
		--contact-sheet $(DEMO)/contact_sheet.png

test: check
	$(PYTEST)

test-fast: .venv/.installed
	$(PYTEST) $(SLOW)

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
