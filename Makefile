# make demo: the whole pipeline on synthetic faces.   make test: the tests.   make docs: the documentation in site/.
# make chaos: damaged inputs, kills, full disks, I/O errors and raw HTTP for DURATION seconds with SEED.
# make check: lint, format, types, spelling, sentence length and files.   make format: format the code.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 1

.PHONY: demo test check docs format clean chaos

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

# DURATION in seconds, or NUMBERS="inputs=10000 kills=1000"; FAMILIES separated by commas; see docs/reliability.md
chaos: .venv/installed-test
	$(BIN)/python -m tests.chaos --seed $(SEED) $(if $(FAMILIES),--families $(FAMILIES)) \
	    $(if $(DURATION),--seconds $(DURATION)) $(foreach number,$(NUMBERS),--count $(number))

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
