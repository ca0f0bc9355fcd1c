# The two commands of the README: `make demo` and `make test`. Both make their own environment in $(VENV), once.
PYTHON ?= python3
VENV ?= .venv
MODELS = shapes_small shapes_medium shapes_large
BANKS = Prototype Cluster End2End Text Combined Random
READY = $(VENV)/.ready
RUN = $(VENV)/bin/python
# The tiny CLIP's cosines are its own, so its cut-offs are too; M = 64 of the 83 words for every backbone.
SETTINGS = DATASET=shapes MODELS="$(MODELS)" BANKS="$(BANKS)" ELEMENTS=segments NUM_CONCEPTS=64 PYTHON=$(abspath $(RUN)) \
	CONCEPT_SET=concept_library/textual/shapes_filtered.txt CLIP_NAME=demo/weights/tiny_clip.json CLIP_CUTOFF=0.1 \
	INTERPRETABILITY_CUTOFF=0

.PHONY: help demo test lint clean-demo
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

demo: $(READY)  ## the whole suite on its built-in data: 3 backbones x 6 banks, tables and a plot in results/shapes
	$(RUN) demo/paint_shapes.py
	$(RUN) demo/pretrain_backbones.py
	$(RUN) demo/train_tiny_clip.py
	$(SETTINGS) bash concept_extract.sh
	$(SETTINGS) bash emb_extractor.sh
	$(SETTINGS) bash ip_train.sh
	$(RUN) reproduction/bank_table.py --dataset shapes --save_dir results/shapes

test: $(READY)  ## all tests
	$(RUN) -m pytest

lint: $(READY)  ## ruff over everything
	$(RUN) -m ruff check .

clean-demo:  ## remove what `make demo` made; the environment stays
	rm -rf datasets/shapes demo/weights concept_library/visual/shapes results/shapes
	rm -rf $(foreach model,$(MODELS),extractor/embs/$(model) IP_training/IP_*/$(model)) extractor/embs/clip/shapes_*

# The stamp is written last: an installation that was broken off is taken up again.
$(READY): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
