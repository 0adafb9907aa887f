# Uses the active virtual environment if there is one, else makes .venv.
PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
# A stamp per set of extras tells that it is installed; repeating is then quick.
STAMP := $(VENV)/.skclip-icm
TOO_OLD = "$(PYTHON) is older than Python 3.11; try make PYTHON=python3.12"

# The oldest supported versions of everything, Python included.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= python3.11

.PHONY: help demo test test-oldest lint docs bench clean

help:
	@echo "make demo         install, then show the method on photographs of solar cells"
	@echo "make test         install, then check style and run all tests and doctests"
	@echo "make test-oldest  the same with the oldest supported dependencies"
	@echo "make lint         check style and mypy only"
	@echo "make docs         build the documentation into docs/_build/html"
	@echo "make bench        run the benchmarks and write benchmarks/results"
	@echo "make clean        remove what the other targets made, .venv included"

demo: $(STAMP)-demo
	$(BIN)/python -m skclip_icm.demo

test: lint
	$(BIN)/python -m pytest --cov

# Without what is slow and the same with any version.
test-oldest: $(OLDEST)/.skclip-icm
	$(OLDEST)/bin/python -m pytest -m "not slow"

lint: $(STAMP)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)-bench
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv $(OLDEST) build dist docs/_build docs/auto_examples docs/api/generated
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage htmlcov
	find skclip_icm tests docs benchmarks -name __pycache__ -exec rm -rf {} +

# Editable, so that no target runs an older copy of the sources.
$(STAMP)-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e ".[demo,$*]"
	touch $@

# pip installs the newest versions only; uv can be asked for the oldest.
$(OLDEST)/.skclip-icm: pyproject.toml
	$(OLDEST_PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python \
	    --resolution lowest-direct -e ".[demo,test]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and $(TOO_OLD))'
	$(PYTHON) -m venv $(VENV)
