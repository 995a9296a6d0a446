# make demo   imports trained models, prints their shifts by domain, writes a report
# make test   runs the test suite, without the tests marked thorough
# make thorough  runs those: kills, hostile files, real models, notebooks, a browser; CI runs both
# make lowest runs it with the lowest versions of the dependencies
# make check  runs linters and the type checker; ESLint, too, where npm is installed
# make reference  builds the corpus of statistics that the package contains
# make docs   builds the manual, docs/_build/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo.db

# make hostile       opens every hostile folder and release of the corpus; `make test` takes some of them
# make crash N=500   kills and interrupts commands, makes the file system fail and loses power, N times each, and checks
#                    what is left
# make fuzz N=100 SECONDS=20   reads N randomly damaged files of each kind besides the hostile ones of the test suite, and
#                    fuzzes each reader, manifests and folders for SECONDS, guided by coverage

.PHONY: crash fuzz hostile demo test thorough lowest check docs bench reference clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# What a user needs, without PyTorch, and what a developer needs. Both are reinstalled when the packaging changes.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/cnnfilterdb demo --db $(DEMO)

# One process per core. Tests of one file stay together, so that its fixtures are made once; tests/conftest.py puts the
# files in order.
WORKERS ?= auto
IN_PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: $(VENV)/installed-dev
	$(BIN)/pytest $(IN_PARALLEL) -m "not thorough"

thorough: $(VENV)/installed-dev
	$(BIN)/pytest $(IN_PARALLEL) -m thorough

# mypy does not follow the import hook of an editable install; a folder of links shows it the layout of the package.
.PHONY: .types
.types:
	rm -rf $@ && mkdir -p $@/cnnfilterdb
	cd $@/cnnfilterdb && ln -s ../../cnnfilterdb/* ../../ingest ../../catalog .

check: $(VENV)/installed-dev .types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.types $(BIN)/mypy -p cnnfilterdb -p benchmarks
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory check-js; else echo "no npm: ESLint is skipped"; fi

# Reinstalled when the versions change.
scripts/explorer/node_modules/.package-lock.json: scripts/explorer/package-lock.json
	cd scripts/explorer && npm ci --ignore-scripts --no-audit --no-fund

.PHONY: check-js
check-js: scripts/explorer/node_modules/.package-lock.json
	cd scripts/explorer && npm run --silent lint

# Needs no network; every warning is an error. The suite builds it, too.
docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs docs/_build

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks

# The corpus inside the package: imports the collection pypi (a download of 3 GB the first time) and writes its statistics.
reference: $(VENV)/installed
	$(BIN)/python scripts/reference.py

N ?= 100
SECONDS ?= 20
crash: $(VENV)/installed-dev
	$(BIN)/python -P tests/crash/harness.py $(N)
	$(BIN)/python -P tests/crash/faults.py $(N)
	$(BIN)/python -P tests/crash/power.py $(N)
	$(BIN)/python -P tests/crash/signals.py $(N)

fuzz: $(VENV)/installed-dev
	rm -rf .fuzz
	$(BIN)/python -P tests/ingest/formats/hostile_files.py .fuzz $(N)
	$(BIN)/python -P tests/fuzz/guided.py $(SECONDS)

hostile: $(VENV)/installed-dev
	HOSTILE=all $(BIN)/pytest tests/cnnfilterdb/store/test_hostile_folders.py tests/cnnfilterdb/release/test_hostile.py

# The lowest versions that pyproject.toml allows, in an environment of their own.
lowest:
	$(PYTHON) scripts/lowest.py

clean:
	rm -rf $(VENV) .lowest .types .fuzz build dist docs/_build *.egg-info $(DEMO)
