# Two commands for people (demo, test); the others are their parts. Each builds .venv if it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lowest pythons container bench mutants lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole study on synthetic scans, on this machine"
	@echo "make test    lint, types, tests, and the tests on a real Slurm (root, Debian)"
	@echo "make lowest  the tests on the lowest versions that pyproject.toml allows, about 15 minutes"
	@echo "make pythons the wheel on other Pythons, from scans to the report, about 10 minutes each"
	@echo "make container the image that docs/containers.md prints, from scans to the report, with docker"
	@echo "make bench   the fast paths against the published way, about ten minutes"
	@echo "make mutants whether the tests notice what is changed in the source, about half an hour"
	@echo "make lint    ruff and mypy alone"
	@echo "make format  let ruff rewrite the sources"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "fewscan needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# mypy does not see through an editable install: the package as a folder of links.
$(VENV)/links: Makefile
	mkdir -p $@/fewscan
	ln -sfn $(foreach it,experiments harness slurm storage package/__init__.py package/py.typed,$(CURDIR)/$(it)) $@/fewscan/
	touch $@

lint: $(VENV)/installed $(VENV)/links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A session's fixtures are made once for each; what one finishes early it takes of the other's.
TWO := --numprocesses 2 --dist worksteal

# -rs: a lab that cannot come up here is said aloud (and fails with CI=true).
test: lint
	$(BIN)/python -m pytest $(TWO)
	$(BIN)/python -m pytest -m slurm -rs tests/slurm_lab

# In an environment of its own, 2.4 GB below build/.
LOWEST := build/lowest
$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	touch $@

lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest $(TWO) -rs

# Each in an environment of its own, 2 to 6 GB below build/ (with what torch brings along).
PYTHONS ?= python3.11 python3.12 python3.13
pythons:
	for python in $(PYTHONS); do $$python tests/on_another_python.py || exit 1; done

# 7 GB, most of them torch's; other engines: tests/in_a_container.py --help
container: $(VENV)/installed
	$(BIN)/python tests/in_a_container.py

# Run it alone on the machine. Writes benchmarks/results/ and the table in benchmarks/README.md.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

# In a copy, build/mutants: an interrupted run leaves the sources as they are. MUTANTS=all takes hours.
MUTANTS ?= 60
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants --count $(MUTANTS) $(MODULES)

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# 48 scans, slices of 48², 79 runs. Each step goes on if it was interrupted.
demo: $(VENV)/installed
	$(BIN)/fewscan phantom demo/scans --subjects 48
	$(BIN)/fewscan prepare demo/scans demo/slices.zarr --size 48
	$(BIN)/fewscan check demo/slices.zarr
	$(BIN)/fewscan sweep experiments/demo.yaml

clean:
	rm -rf demo
