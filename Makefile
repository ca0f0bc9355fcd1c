# The two commands of the README: `make demo` and `make test`. Both make their own environment in $(VENV), once.
PYTHON ?= python3
VENV ?= .venv
MODELS = shapes_small shapes_medium shapes_large
READY = $(VENV)/.ready
RUN = $(VENV)/bin/python
SETTINGS = DATASET=shapes MODELS="$(MODELS)" ELEMENTS=segments PYTHON=$(abspath $(RUN))

.PHONY: help demo test lint clean-demo
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

demo: $(READY)  ## the whole suite on its built-in data: three IIS and a plot in results/shapes
	$(RUN) demo/paint_shapes.py
	$(RUN) demo/pretrain_backbones.py
	$(SETTINGS) bash concept_extract.sh
	$(SETTINGS) bash emb_extractor.sh
	$(SETTINGS) bash ip_train.sh

test: $(READY)  ## all tests
	$(RUN) -m pytest

lint: $(READY)  ## ruff over everything
	$(RUN) -m ruff check .

clean-demo:  ## remove what `make demo` made; the environment stays
	rm -rf datasets/shapes demo/weights concept_library/visual/shapes results/shapes
	rm -rf $(foreach model,$(MODELS),extractor/embs/$(model) IP_training/IP_Prototype/$(model))

# The stamp is written last: an installation that was broken off is taken up again.
$(READY): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
