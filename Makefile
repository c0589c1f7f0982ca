# make serve    run the server                    ARGS="--http 0.0.0.0:8090" gives it arguments
# make test     run all tests                     ARGS="-k filters" chooses some
# make build    freeze to one executable          dist/pocketbase
# make zipapp   pack for a machine with Python    dist/pocketbase.pyz
# make bench    measure throughput and latency    REFERENCE=path/to/pocketbase compares with another executable
# make parity   compare answers with PocketBase   REFERENCE=path/to/pocketbase is needed
# make lint     check the style of the source
# make map      list the chapters of pocketbase.py
# make venv     only install what the server needs, into .venv
# make clean    remove all that the others made
#
# Each installs what it needs first, and only once. Needed: Python 3.11 or newer with venv, e.g. PYTHON=python3.13.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES = pocketbase.py $(wildcard assets assets/* assets/*/* assets/*/*/*)

.PHONY: help serve test build zipapp bench parity lint map venv clean
.SILENT:
.DELETE_ON_ERROR:

help:
	sed -n '/^# make/s/^# //p' Makefile

# As a module its compiled form is kept; as a script it is compiled at each start, which takes 90 ms.
serve: venv
	exec $(BIN)/python -m pocketbase serve $(ARGS)

test: $(VENV)/dev
	$(BIN)/python -m pytest -q $(or $(ARGS),tests)

build: dist/pocketbase

zipapp: dist/pocketbase.pyz

bench: venv
	REFERENCE="$(REFERENCE)" $(BIN)/python tests/bench.py $(ARGS)

parity: venv
	REFERENCE="$(REFERENCE)" $(BIN)/python tests/parity.py $(ARGS)

lint: $(VENV)/dev
	$(BIN)/ruff check --quiet --config tests/ruff.toml pocketbase.py tests

map:
	$(PYTHON) tests/page.py

venv: $(VENV)/runtime

clean:
	rm -rf $(VENV) build dist tests/js/node_modules .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -r {} +

# ---- stamps: what is installed, and from which list
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: requirements.txt | $(VENV)/bin/python
	$(PIP) install --requirement requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/runtime
	$(PIP) install --requirement requirements-dev.txt
	touch $@

# PyInstaller wants binutils and Python as a shared library. Debian's python3 comes without; its packages unpack here without root.
NATIVE = $(abspath $(VENV))/native
NATIVE_LIBS = $(shell ls -d $(NATIVE)/usr/lib/*-linux-gnu 2>/dev/null)

$(VENV)/native: $(VENV)/dev
	rm -rf $@ && mkdir $@
	if ! command -v objcopy >/dev/null || ! $(BIN)/python -c 'from PyInstaller.depend.bindepend import *; get_python_library_path()' 2>/dev/null; then \
	    lib=$$($(BIN)/python -c 'import sys; print("libpython%d.%d" % sys.version_info[:2])'); \
	    { missing=$$(apt-get install --simulate --no-upgrade --no-install-recommends binutils $$lib | awk '/^Inst/ {print $$2}') && \
	      cd $@ && apt-get download -qq -o APT::Sandbox::User=root $$missing && for deb in *.deb; do dpkg --extract $$deb . && rm $$deb; done; } || \
	    { echo "To freeze, install binutils and Python's shared library (Debian: apt-get install binutils $$lib)" >&2; rm -rf $(NATIVE); exit 1; }; fi
	touch $@

dist/pocketbase: build.spec $(SOURCES) $(VENV)/native
	PATH="$$PATH:$(NATIVE)/usr/bin" LD_LIBRARY_PATH="$(NATIVE_LIBS)" $(BIN)/pyinstaller --noconfirm --log-level ERROR build.spec

dist/pocketbase.pyz: $(SOURCES) $(VENV)/dev
	rm -rf build/zipapp && mkdir -p build/zipapp dist
	$(PIP) install --requirement requirements.txt --target build/zipapp
	cp -r pocketbase.py assets build/zipapp
	$(BIN)/shiv --compressed --site-packages build/zipapp --entry-point pocketbase:main --output-file $@ >/dev/null
