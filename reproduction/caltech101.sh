#!/usr/bin/env bash
# Six ImageNet networks on Caltech-101: from the zipped images to the tables and figures of docs/results.md.
#   IIS_DATA=/path/to/data bash reproduction/caltech101.sh
# Input:  $IIS_DATA/caltech101.zip (train/CLASS/*.jpg, test/CLASS/*.jpg), $IIS_DATA/imagenet-pictures/SYNSET/*.JPEG,
#         $IIS_DATA/weights/mobilenet_v1_{025_128,050_160,075_192}.pth, mobilenet_v2_100_224.pth, efficientnet_lite{0,1}.pth
# Output: datasets/caltech101 (75 MB), extractor/embs, IP_training/IP_*/, results/reproduction/caltech101*
# Time:   six to eight hours on 2 cores, estimated from its parts. Killed and started again, it goes on. The first sweep
#         takes 45 minutes, elements and embeddings included.
# Expect: original heads of 56, 74, 84, 91, 93 and 93 % on the 43 images; at M = 64 an IIS of 0.72 to 0.80 under
#         Prototype and of 0.70 to 0.77 under Random.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${IIS_DATA:?export IIS_DATA=the folder that holds caltech101.zip, imagenet-pictures/ and weights/}"
export PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if [ ! -d datasets/caltech101/test ]; then
    mkdir -p datasets
    rm -rf datasets/caltech101.unpacking
    "$PYTHON" -m zipfile -e "$IIS_DATA/caltech101.zip" datasets/caltech101.unpacking
    mv datasets/caltech101.unpacking datasets/caltech101
fi
for model in mobilenet_v1_025_128 mobilenet_v1_050_160 mobilenet_v1_075_192 mobilenet_v2_100_224 efficientnet_lite0 \
        efficientnet_lite1; do    # weights, padding and preprocessing are right, or nothing below means anything
    "$PYTHON" extractor/check_backbone.py --config_yaml "$model" --dataset imagenet_pictures
done
for sweep in caltech101 caltech101_converged; do
    "$PYTHON" reproduction/sweep.py "$sweep"
    "$PYTHON" reproduction/accuracy_at_nec.py --sweep "$sweep" --seeds 2
    for table in iis_against_accuracy arr_curves which_bank; do
        "$PYTHON" "reproduction/$table.py" --sweep "$sweep"
    done
done
for sweep in caltech101_depth caltech101_sizes; do "$PYTHON" reproduction/sweep.py "$sweep"; done
"$PYTHON" reproduction/accuracy_at_nec.py --sweep caltech101_depth --seeds 1
"$PYTHON" reproduction/along_depth.py --sweep caltech101_depth
"$PYTHON" reproduction/iis_against_accuracy.py --sweep caltech101_sizes
"$PYTHON" reproduction/explain.py --run IP_training/IP_Prototype/mobilenet_v1_075_192/caltech101_segments_M64 --mistakes 5 \
    --out results/reproduction/caltech101/explanation
"$PYTHON" reproduction/finetuning.py finetuning_caltech101
"$PYTHON" reproduction/finetuning_table.py --sweep finetuning_caltech101 --save_dir results/reproduction/caltech101
echo "Caltech-101 from zip to tables: $SECONDS s"
