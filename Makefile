# Two commands matter: `make demo` shows the whole way on a real network, `make test` checks the code.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint docs agent clean

demo: $(VENV)/demo.stamp
	$(BIN)/trt-layermerge run engines/recipes/glyphs-resnet20-cpu.yaml --run demo

# Lint first: it fails in seconds, the tests take minutes. One process for each core, one thread in
# each: two libraries that share cores take turns at waiting. A file's tests share what they set up.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# The manual as a site, readable from disk. (Material warns of a version of MkDocs that the extra excludes.)
docs: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.manual
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The measuring agent for a Jetson, in one file; needs nothing but Python.
agent:
	$(PYTHON) -m trt_layermerge.measure.agent.zipapp

# A stamp is renewed when what would be installed changes; the package itself is editable.
$(VENV)/demo.stamp: pyproject.toml setup.py | $(BIN)/python
	$(PIP_INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/test.stamp: pyproject.toml setup.py | $(BIN)/python
	$(PIP_INSTALL) --editable '.[demo,zoo,dev]'
	touch $@ $(VENV)/demo.stamp

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
