# `make demo` shows the main job on real photos; `make test` runs every test. Both need only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo needs the core and its photos alone; everything else needs all extras.
CORE := $(VENV)/.core
ALL := $(VENV)/.all
# Without --no-compile pip writes 200 MB of bytecode, most of it of modules that nothing imports.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: demo test lint docs bench-check mutants sbom audit clean
demo: $(CORE)
	$(BIN)/intclip demo --out demo

# A worker a core, each with one thread: with more they wait for each other
test: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# Compares ratios of speeds, never times, with docs/figures/bench_check.json
bench-check: $(ALL)
	$(BIN)/python -m benchmarks.bench_check

# Changes the numerical core ([tool.mutmut]), one place at a time, and counts what its tests notice; `mutmut results`
# lists what they do not. `.venv/bin/mutmut run 'intclip.losses.*'` runs one module.
mutants: $(ALL)
	$(INSTALL) --editable '.[mutation]'
	$(BIN)/mutmut run

# The documentation site: build/docs/index.html
docs: $(ALL)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs build/docs

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable '.[demo]'
	touch $@

$(ALL): $(CORE)
	$(INSTALL) --editable '.[all,dev]'
	touch $@

# A bill of materials (build/sbom.cdx.json), and known vulnerabilities of the pinned versions; offline they say so.
sbom audit: $(ALL)
	$(BIN)/python .ci/supply_chain.py $@

clean:
	rm -rf $(VENV) demo build *.egg-info src/*.egg-info
