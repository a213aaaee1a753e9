# Each target sets up what it needs. The virtual environment is ./.venv unless VENV says otherwise.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test check system bench fuzz docs slow clean packages format

demo: $(STAMP)
	@deploy/debian-packages demo
	$(BIN)/pagein demo

test: $(STAMP) packages check
	$(PYTEST) -q

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

system: $(STAMP) packages
	$(PYTEST) -q tests/system

slow: $(STAMP) packages
	$(PYTEST) -q -m slow --timeout 900

bench: $(STAMP) packages
	$(BIN)/python bench/run.py

# Each property test looks at FUZZ times as many examples as in `make test`.
fuzz: FUZZ ?= 50
fuzz: $(STAMP)
	PAGEIN_FUZZ=$(FUZZ) $(PYTEST) -q tests/property

docs: $(STAMP)
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python docs/check_docs.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

packages:
	@deploy/debian-packages test

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
