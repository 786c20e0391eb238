PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2-135m
QUERIES ?= world
PRESET ?= quick
CHROMIUM := $(or $(HOPSCOPE_CHROMIUM),$(shell command -v chromium || command -v chromium-browser || command -v google-chrome))
# Threads that wait must not spin: on a shared machine spinning costs a factor of ten.
export OMP_WAIT_POLICY ?= PASSIVE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help figures study test test-browser lab docs lint format readme notebooks benchmark setup clean
.DEFAULT_GOAL := help

help:  ## Say what can be made.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

figures: $(VENV)/.installed  ## Grade real two-hop queries, back-patch, draw figures/rendered/.
	$(BIN)/hopscope figures grading back_patching --model $(MODEL) --queries $(QUERIES) --preset $(PRESET) \
		$(if $(LIMIT),--limit $(LIMIT))

study: $(VENV)/.installed  ## Run every analysis; write figures, tables and a page into study/.
	$(BIN)/hopscope study --model $(MODEL) --queries $(QUERIES) --preset $(PRESET) \
		$(if $(LIMIT),--limit $(LIMIT)) -o study

# Notebooks take longest and are begun first, so that two workers do not wait for one in the end.
test: lint  ## Check style and types, run all tests and notebooks.
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal \
		--nbmake --nbmake-timeout=900 --ignore=tests/browser notebooks tests

test-browser: $(VENV)/.browsing  ## Use the widgets in JupyterLab and headless Chromium.
	@test -n "$(CHROMIUM)" || { echo "test-browser needs Chromium: apt-get install chromium (Debian)," \
		"or HOPSCOPE_CHROMIUM=/path/to/one" >&2; exit 1; }
	HOPSCOPE_CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/browser

docs: $(VENV)/.documenting  ## Build the documentation into build/site/, strictly.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lab: $(VENV)/.developed  ## Open JupyterLab on the notebooks.
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hopscope probes figures benchmarks
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.developed  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(VENV)/.developed  ## Write the tables of analyses and families, and the options of the commands.
	$(BIN)/python -m hopscope.study.readme README.md docs/analyses.md
	$(BIN)/python -m hopscope.commands.specs
	$(BIN)/python tests/family_page.py

notebooks: $(VENV)/.developed  ## Execute the notebooks in place.
	$(BIN)/jupytext --quiet --to ipynb --update notebooks/*.py
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.store_widget_state=False notebooks/*.ipynb

benchmark: $(VENV)/.installed  ## hopscope beside plain hooks, TransformerLens and nnsight.
	$(BIN)/python benchmarks/back_patching.py

setup: $(VENV)/.developed  ## Make the environment, developers' tools included.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.browsing: $(VENV)/.developed
	$(INSTALL) -e ".[dev,browser]"
	@touch $@

$(VENV)/.documenting: $(VENV)/.developed
	$(INSTALL) -e ".[dev,docs]"
	@touch $@

clean:  ## Remove the environment and the runs.
	rm -rf $(VENV) runs build browser-screenshots *.egg-info
