#!/usr/bin/env bash
# CIFAR-10 with two public ResNets, from the zipped images to the IIS of both protocols.
#   IIS_DATA=/path/to/data bash reproduction/cifar10.sh
# Input:  $IIS_DATA/cifar10.zip (train/CLASS/*.png, test/CLASS/*.png), $IIS_DATA/weights/resnet{20-12fca82f,56-4bfd9763}.th
# Output: datasets/cifar10 (240 MB), extractor/embs, IP_training/IP_Prototype, results/cifar10; about 0.4 GB.
# Time:   about 30 minutes on 2 cores without a GPU.
# Expect: original heads 91.73 % and 93.39 %; dense heads >= 91.5 % and >= 93.0 %; the README has the table.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${IIS_DATA:?export IIS_DATA=the folder that holds cifar10.zip and weights/}"

export DATASET=cifar10 MODELS=${MODELS:-resnet20 resnet56} ELEMENTS=${ELEMENTS:-segments} FORMAT=png
export BATCH_SIZE=${BATCH_SIZE:-500} SEEDS=${SEEDS:-3}
export PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if [ ! -d datasets/cifar10/test ]; then
    mkdir -p datasets
    rm -rf datasets/cifar10.unpacking
    "$PYTHON" -m zipfile -e "$IIS_DATA/cifar10.zip" datasets/cifar10.unpacking
    mv datasets/cifar10.unpacking datasets/cifar10
fi
for model in $MODELS; do    # images, preprocessing and weights are right, or nothing below means anything
    "$PYTHON" extractor/check_backbone.py --config_yaml "$model" --dataset cifar10 --batch_size "$BATCH_SIZE"
done
for protocol in paper release; do
    PROTOCOL=$protocol bash concept_extract.sh
    PROTOCOL=$protocol bash emb_extractor.sh
    PROTOCOL=$protocol NUM_CONCEPTS=16 bash ip_train.sh
done
NUM_CONCEPTS=200 bash ip_train.sh    # near its ceiling here (M = 200 > D = 64), and the output says so
echo "CIFAR-10 from zip to IIS: $SECONDS s"
