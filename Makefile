# Two commands: `make demo` runs the main job, `make test` the tests. Each sets up .venv by itself the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
OUT ?= runs/demo
OTHERS := tests/explain/networks/test_families.py::test_models_of_transformers_are_explained_as_they_are \
	tests/explain/tokens/test_token_gradient.py::test_with_constant_attention_it_is_lxts \
	tests/evaluation/test_map_functions.py::test_quantus_maps_take_part
# Many short processes import torch: without compiled files each of them spends ten seconds on it.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test others lint types docs clean help
help:
	@echo "make demo   simulated patients -> crops -> model -> maps -> report in $(OUT)"
	@echo "make test   the tests;  make lint   ruff;  make types   mypy;  make docs   the site in site/"

demo: $(STAMP)
	$(BIN)/lidc-xai demo --out $(OUT)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q $(ARGS)

# Tests that compare with transformers, lxt and Quantus, which lie beside the environment (requirements.others.lock).
others: $(VENV)/others/.ready
	PYTHONPATH=$(VENV)/others $(BIN)/python -m pytest -q $(OTHERS)

$(VENV)/others/.ready: requirements.others.lock $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/others --no-deps -r requirements.others.lock
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@$(BIN)/python -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("pangoft2-1.0"))' || \
		echo "note: no Pango on this system, so reports come as HTML only; for PDF on Debian: apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
