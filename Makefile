# make demo: the whole pipeline on synthetic faces.   make test: the tests.   make docs: the documentation in site/.
# make check: lint, format, types, spelling, sentence length and files.   make format: format the code.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs format clean

demo: .venv/installed
	$(BIN)/featgan demo

test: .venv/installed-test
	$(BIN)/pytest

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/check_sentences.py
	$(BIN)/python scripts/check_files.py

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv build runs site *.egg-info
