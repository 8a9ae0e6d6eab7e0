PYTHON ?= .venv/bin/python

.PHONY: setup check lint types test test-slow format figures docs wheel clean

setup:  ## a virtual environment with everything for development (CPU build of torch)
	python3 -m venv .venv
	.venv/bin/pip install torch==2.13.0
	.venv/bin/pip install -e '.[test]'
	.venv/bin/pip install --no-deps iiif-prezi3  # which asks for an old Pillow

check: lint types test  ## what CI runs

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:  ## a process a core, four at most; a file's tests stay together
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow:  ## README's commands and other tests that take minutes
	$(PYTHON) -m pytest -m slow

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs:  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

figures:  ## the documents' pictures; PHOTOS=... gives photos for the curves; needs Debian's chromium
	$(PYTHON) scripts/make_figures.py
	$(PYTHON) scripts/make_theory_figures.py $(if $(PHOTOS),--photos $(PHOTOS))
	$(PYTHON) scripts/screenshot_app.py

wheel:
	$(PYTHON) -m pip wheel --no-deps -w dist .

clean:
	rm -rf dist build site .mypy_cache .pytest_cache .ruff_cache
