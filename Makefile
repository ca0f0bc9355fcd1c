# The commands of the README. Each makes the environment in $(VENV) first, once.
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

.PHONY: help demo reproduce test lint bench bench-cuda clean-demo
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

demo: $(READY)  ## the whole suite on its built-in data: 3 backbones x 6 banks, tables and a plot in results/shapes
	$(RUN) demo/paint_shapes.py
	$(RUN) demo/pretrain_backbones.py --tiny_clip
	$(SETTINGS) bash concept_extract.sh
	$(SETTINGS) bash emb_extractor.sh
	$(SETTINGS) bash ip_train.sh
	$(RUN) reproduction/which_bank.py --model_root IP_training --dataset shapes --save_dir results/shapes

# IIS_DATA adds CIFAR-10 (hours, and reproduction/cifar10.sh first).
reproduce: demo  ## every table and figure of the paper on `shapes`, with a report in results/reproduction/shapes
	$(if $(IIS_DATA),PYTHON=$(abspath $(RUN)) bash reproduction/cifar10.sh)
	$(RUN) demo/pretrain_backbones.py --nets 5
	PYTHON=$(abspath $(RUN)) SWEEPS="shapes $(if $(IIS_DATA),cifar10)" bash reproduction/reproduce.sh

test: $(READY)  ## all tests
	$(RUN) -m pytest

lint: $(READY)  ## ruff over everything
	$(RUN) -m ruff check .

bench: $(READY)  ## speed claims on this machine's processor, both sides of each; JSON in bench/results
	$(RUN) bench/heads.py
	$(RUN) bench/grid.py
	$(RUN) bench/segments.py
	$(RUN) bench/embeddings.py
	$(RUN) bench/embeddings.py --together shufflenet_v2_x0_5,mobilenet_v3_small,resnet18
	$(RUN) bench/memory.py
	$(RUN) bench/busy.py
	$(RUN) bench/nec.py
	$(RUN) bench/table.py

bench-cuda: $(READY)  ## the same on a GPU, at ImageNet's shape
	$(RUN) bench/gpu.py

clean-demo:  ## remove what `make demo` and `make reproduce` made of `shapes`; the environment stays
	rm -rf datasets/shapes demo/weights concept_library/visual/shapes extractor/embs/shapes_* extractor/embs/clip/shapes_*
	rm -rf IP_training/IP_*/shapes_* IP_training/dense_heads/shapes_* results/shapes results/sweeps/shapes
	rm -rf results/reproduction/shapes results/reproduction/variance_shapes results/reproduction/score_truth
	rm -rf results/sweeps/shapes_nets results/reproduction/shapes_nets
	rm -rf results/finetuning/finetuning_shapes results/reproduction/finetuning_shapes

# The stamp is written last: an installation that was broken off is taken up again.
$(READY): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
