#!/usr/bin/env bash
# Stage 1: cut images into visual elements (segments and patches).
#   bash concept_extract.sh                              ImageNet, as published
#   DATASET=shapes bash concept_extract.sh               the built-in data set (demo/paint_shapes.py paints it)
#   bash concept_extract.sh --dry-run   (or DRY_RUN=1): numbers, bytes and folders; nothing is made
# Input:  the data set's training images, where dataset_configs/$DATASET.yaml says.
# Output: concept_library/visual/. ImageNet: up to 150,000 segments and 160,000 patches, some 7 GB and 4 GB,
#         about an hour and a quarter of one core in all, divided by the cores; shapes: seconds.
# Expect: 10 images per class, at most 15 segments and exactly 16 patches of each. A second run is instant.
set -euo pipefail
cd "$(dirname "$0")"
. iis/stage.sh

DATASET=${DATASET:-imagenet}
ELEMENTS=${ELEMENTS:-segments patches}
PROTOCOL=${PROTOCOL:-paper}              # or release
IMAGES_PER_CLASS=${IMAGES_PER_CLASS:-10}
SEED=${SEED:-0}
FORMAT=${FORMAT:-jpeg}                   # or png
WORKERS=${WORKERS:-}                     # processes; empty: all cores
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

for kind in $ELEMENTS; do
    case $kind in
        segments) script=segment_extractor.py ;;
        patches)  script=patch_extractor.py ;;
        *) echo "ELEMENTS=$kind is not known: use segments, patches or both" >&2; exit 2 ;;
    esac
    "$PYTHON" "extractor/$script" --dataset "$DATASET" --image_per_class "$IMAGES_PER_CLASS" \
        --protocol "$PROTOCOL" --seed "$SEED" --format "$FORMAT" ${WORKERS:+--workers "$WORKERS"} \
        ${DRY_RUN:+--dry_run}
done
