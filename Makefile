# `make help` lists the commands. Needs Python 3.11 or later and make; everything else is set up
# in .venv from requirements.txt.
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
PROFILE ?= tiny
DATA    ?=
ECG_FM  ?=
JOBS    ?=
SCHEDULER ?=
ARGS    ?=
SETS    ?=
MIRROR  ?=
VERIFY  ?=
ifneq ($(strip $(DATA)),)
export BEATSSL_DATA := $(abspath $(DATA))
endif
ifneq ($(strip $(ECG_FM)),)
export BEATSSL_ECG_FM := $(abspath $(ECG_FM))
endif
VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# tests in as many processes as there are cores, at most four
SPREAD := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup data book run check build pdf bench lint format test test-all clean

help: ## this list
	@echo "Beat-SSL, reproduced. Commands (profile tiny is synthetic and needs no data):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@echo "Options: PROFILE=tiny|subset|full|size  DATA=folder of recordings  JOBS=pages at once"
	@echo "         ARGS=--force with run: all pages again, the fresh ones too"
	@echo "         SCHEDULER=tcp://host:port with run: on the workers of a Dask cluster"
	@echo "         SETS=\"ptbxl ludb\"  VERIFY=1  MIRROR=address  ARGS=--dry-run with data"
	@echo "         ECG_FM=file of the released ECG-FM weights: adds its row"
	@echo "Real recordings: make book PROFILE=subset DATA=../shared/data"

setup: $(STAMP) ## set up .venv from requirements.txt

$(STAMP): requirements.txt pyproject.toml
	@echo "setting up $(VENV) from requirements.txt (once; some minutes) ..."
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 on PATH: set PYTHON=..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11: set PYTHON=..."; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@
	@echo "$(VENV) is ready"

data: $(STAMP) ## fetch PTB-XL, LUDB and the Challenge 2021 recordings into DATA
	@test -n "$(strip $(DATA))" || { echo "say where to: make data DATA=folder"; exit 1; }
	@$(PY) -m beatssl data --into "$(DATA)" $(if $(SETS),--sets $(SETS)) \
	  $(if $(MIRROR),--mirror $(MIRROR)) $(if $(VERIFY),--verify) $(ARGS)

book: run ## run the notebooks of PROFILE, then build the book
	@$(PY) -m beatssl build --profile $(PROFILE)

run: $(STAMP) ## execute the notebooks of PROFILE that are not fresh
	@$(PY) -m beatssl run --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS)) \
	  $(if $(SCHEDULER),--scheduler $(SCHEDULER)) $(ARGS)

check: $(STAMP) ## name the pages that are stale, failed or missing
	@$(PY) -m beatssl check

build: $(STAMP) ## build the book from the pages that are there
	@$(PY) -m beatssl build --profile $(PROFILE)

pdf: $(STAMP) ## the committed pages as one PDF, printed by chromium: _build/beatssl.pdf
	@$(PY) -m beatssl pdf --profile subset

bench: $(STAMP) ## measure what it costs, on simulated records: results/bench.csv and its page
	@OMP_NUM_THREADS=1 $(PY) tests/bench.py
	@$(PY) tests/bench_page.py

lint: $(STAMP) ## is the code formatted, free of faults that ruff sees, and annotated?
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy

format: $(STAMP) ## format the code and the notebooks
	@$(VENV)/bin/ruff check --quiet --fix . ; $(VENV)/bin/ruff format .

test: $(STAMP) ## the fast tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(SPREAD) $(ARGS)

test-all: $(STAMP) ## the slow tests too
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(SPREAD) -m "slow or not slow" $(ARGS)

clean: ## remove the built book and the working files of PROFILE
	rm -rf _build book/_generated work/$(PROFILE)
