#!/usr/bin/env bash
# Stages 3 and 4: train the interpretation predictors of every backbone named, then print their IIS.
#   bash ip_train.sh                                               ResNet-50 on ImageNet, as published
#   DATASET=shapes MODELS="shapes_small shapes_large" bash ip_train.sh
# Input:  stage 2's embeddings.
# Output: IP_training/IP_Prototype/MODEL/…: ledger, predictors, IIS table and plot; a few MB. The representations
#         stay in memory: 11 GB for ResNet-50 on ImageNet. shapes: under a minute for a backbone on 2 cores.
# Expect: 8 ratios x 3 learning rates x SEEDS cells and a dense head, in one pass over the data per epoch; ARR near 1
#         without sparsity, falling as fewer concepts stay; an IIS between 0 and 0.98.
set -euo pipefail
cd "$(dirname "$0")"

DATASET=${DATASET:-imagenet}
MODELS=${MODELS:-resnet50}
ELEMENTS=${ELEMENTS:-segments}           # and/or patches
PROTOCOL=${PROTOCOL:-paper}              # or release
SEEDS=${SEEDS:-3}                        # how many
NUM_CONCEPTS=${NUM_CONCEPTS:-}           # empty: the data set's own
RATIOS=${RATIOS:-}                       # empty: 0,0.1,0.3,0.5,0.7,0.9,0.95,0.98
EPOCHS=${EPOCHS:-30}
DEVICE=${DEVICE:-}                       # empty: cuda where there is one
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

roots=()
for model in $MODELS; do
    for kind in $ELEMENTS; do
        "$PYTHON" IP_training/IP_Prototype_training.py --model_name "$model" --dataset "$DATASET" \
            --element_kind "$kind" --protocol "$PROTOCOL" --seeds "$SEEDS" --n_epoch "$EPOCHS" \
            ${NUM_CONCEPTS:+--num_concepts "$NUM_CONCEPTS"} ${RATIOS:+--ratios "$RATIOS"} ${DEVICE:+--device "$DEVICE"}
        roots+=("IP_training/IP_Prototype/$model/${DATASET}_${kind}_"*)    # every M and protocol so far
    done
done
echo "stage 3 (predictors of $MODELS on $DATASET): $SECONDS s"
"$PYTHON" iis_computing.py --model_root "${roots[@]}" --save_dir "results/$DATASET"
echo "stages 3 and 4: $SECONDS s"
