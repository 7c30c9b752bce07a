# `make demo` runs the main job on real photos; `make test` runs every test. Both need only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint sbom audit clean
demo: $(STAMP)
	$(BIN)/intclip demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

# A bill of materials (build/sbom.cdx.json), and known vulnerabilities of the pinned versions; offline they say so.
sbom audit: $(STAMP)
	$(BIN)/python .ci/supply_chain.py $@

clean:
	rm -rf $(VENV) demo build *.egg-info src/*.egg-info
