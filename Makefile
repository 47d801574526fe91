# `make` alone prints what there is.

PYTHON ?= python3
BIN := .venv/bin
DEMO := data/demo
STUDY := --data-root $(DEMO)/style_mimicry
# One worker more than there are processors: some tests wait for most of their time.
WORKERS = $(shell $(BIN)/python -c "import os; print(min(8, len(os.sched_getaffinity(0)) + 1))")
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What trains, paints or kills: minutes, where the rest takes one.
SLOW := $(addprefix --ignore=tests/,tuning/hf_diffusers tuning/test_end_to_end.py demo tools chaos slurm)

.PHONY: help demo test test-fast check clean

help:
	@echo "make demo       set up .venv, draw a small study, train its pilot in three conditions, draw with it"
	@echo "make test       set up .venv, then lint, types and all tests that need no GPU"
	@echo "make test-fast  the inner loop: all tests but those of the trainer, the demo and Slurm, a minute and a half"
	@echo "make check      lint, imports and types only"
	@echo "make clean      remove what the others made, the demo's trained adapters included"
	@echo "Another Python: make demo PYTHON=python3.13"

demo: .venv/.installed
	$(BIN)/mimicry demo $(DEMO)
	@echo "== Train what its study.toml says: original art, protected by mist, and countered by noisy upscaling"
	$(BIN)/apply_tuning $(STUDY)
	@echo "== What the adapters paint, and what the base model paints"
	$(BIN)/mimicry samples $(STUDY) --contact-sheet $(DEMO)/contact_sheet.png
	@echo "== What the study says: open this page"
	$(BIN)/mimicry report $(STUDY) --output $(DEMO)/report --title "Demo study, a miniature"

test: check
	$(PYTEST)

test-fast: .venv/.installed
	$(PYTEST) $(SLOW)

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info $(DEMO) .mypy_cache .ruff_cache .pytest_cache

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
