# Each target does all of its own set-up; the second run finds it done and starts at once.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo gallery test slow lint bench clean

demo: $(STAMP)
	$(BIN)/python -m analyses.embedding_arithmetic --model minilm

gallery: $(STAMP)
	$(BIN)/python -m interp.cli.gallery --into reports/gallery

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/forward.py --peers hf,transformer_lens

# The stamp bears the time at which the install began and appears only when it has succeeded:
# a half-finished install leaves none, and a file changed meanwhile is newer.
# `venv` keeps an environment that is already there, and mends one that lost its pip.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "interp needs Python 3.11 or later; give one with make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	@touch $@.started
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[demo,dev]'
	@mv $@.started $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
