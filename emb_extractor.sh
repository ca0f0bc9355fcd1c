#!/usr/bin/env bash
# Stage 2: embed the visual elements and the data set's own images with every backbone named.
#   bash emb_extractor.sh                                          ResNet-50 on ImageNet, as published
#   DATASET=cifar10 MODELS="resnet20 resnet56" bash emb_extractor.sh
#   bash emb_extractor.sh --dry-run   (or DRY_RUN=1): shapes, bytes and folders; nothing is made
# Input:  stage 1's elements, the data set, and the weights (torchvision downloads its own, ResNet-50: 98 MB).
# Output: extractor/embs/MODEL/. ResNet-50 on ImageNet: 12 GB; a pass over 1.3 million images, an hour or so on one
#         GPU with 16 reading cores, days on a laptop. shapes: about a minute for three backbones on 2 cores.
# Expect: one row of D numbers per image and element. Killed and started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"
. iis/stage.sh

DATASET=${DATASET:-imagenet}
MODELS=${MODELS:-resnet50}               # names in model_configs/, or YAML files of your own
ELEMENTS=${ELEMENTS:-segments patches}
PROTOCOL=${PROTOCOL:-paper}              # or release
CONCEPT_SET=${CONCEPT_SET:-}             # a list of words: CLIP's embeddings too, for the Text bank; empty: none
CLIP_NAME=${CLIP_NAME:-}                 # which CLIP; empty: ViT-B/16
WORKERS=${WORKERS:-}                     # processes: on a CPU they read and compute, beside a GPU they read
BATCH_SIZE=${BATCH_SIZE:-}               # empty: the YAML's
DEVICE=${DEVICE:-}                       # empty: cuda where there is one
TF32=${TF32:-}                           # 1: convolutions and products on CUDA in TF32; folders are named MODEL__tf32
TOGETHER=${TOGETHER:-}                   # 1: all MODELS in memory at once, each image decoded once for all of them
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

together=
if [ -n "$TOGETHER" ]; then together=$(echo $MODELS | tr ' ' ','); fi
for model in $MODELS; do
    others=${together#"$model"}
    together=    # the first model takes the others along; they then find their files done
    for kind in $ELEMENTS; do
        elements=$("$PYTHON" -c 'import sys; from iis.names import elements_folder; print(elements_folder(*sys.argv[1:]))' \
            "$DATASET" "$kind" "$PROTOCOL")
        if [ ! -d "$elements" ] && [ -z "$DRY_RUN" ]; then
            echo "error: there are no $kind of $DATASET at $elements: run DATASET=$DATASET bash concept_extract.sh" \
                "first (it says how to point at the data), or try DATASET=shapes, which the suite paints itself" >&2
            exit 2
        fi
        "$PYTHON" extractor/visual_element_emb_extractor.py --config_yaml "$model" --dataset "$DATASET" \
            --data_path "$elements" --element_kind "$kind" --representations train,val ${others:+--together "${others#,}"} \
            ${WORKERS:+--workers "$WORKERS"} \
            ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${DEVICE:+--device "$DEVICE"} ${TF32:+--tf32} ${DRY_RUN:+--dry_run}
    done
    if [ -n "$CONCEPT_SET" ]; then
        "$PYTHON" extractor/textual_emb_extractor.py --config_yaml "$model" --dataset "$DATASET" \
            --concept_set "$CONCEPT_SET" ${CLIP_NAME:+--clip_name "$CLIP_NAME"} ${WORKERS:+--workers "$WORKERS"} \
            ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${DEVICE:+--device "$DEVICE"} ${TF32:+--tf32} ${DRY_RUN:+--dry_run}
    fi
done
