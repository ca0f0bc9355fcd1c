#!/usr/bin/env bash
# CIFAR-10: every bank that needs no CLIP, at three sizes, for two public ResNets. After reproduction/cifar10.sh.
# Output: IP_training/IP_*/, results/cifar10/which_bank*
# Time:   about 70 minutes on 2 cores (End2End at M = 200 is a third of it, and has one seed).
# Expect: the table in the README.
set -euo pipefail
cd "$(dirname "$0")/.."
export DATASET=cifar10 FORMAT=png BATCH_SIZE=${BATCH_SIZE:-500}
export PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export MODELS=${MODELS:-resnet20 resnet56}

ELEMENTS=patches bash concept_extract.sh
ELEMENTS=patches bash emb_extractor.sh
for size in ${SIZES:-16 64 200}; do
    export NUM_CONCEPTS=$size
    ELEMENTS="segments patches" BANKS=Prototype bash ip_train.sh
    BANKS="Cluster Random" bash ip_train.sh
    SEEDS=$([ "$size" -gt 64 ] && echo 1 || echo 3) BANKS=End2End bash ip_train.sh
done
"$PYTHON" reproduction/which_bank.py --model_root IP_training --dataset cifar10 --save_dir results/cifar10
