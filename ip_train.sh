#!/usr/bin/env bash
# Stages 3 and 4: train the interpretation predictors of every backbone and bank named, then print their IIS.
#   bash ip_train.sh                                               ResNet-50 on ImageNet, Prototype bank, as published
#   DATASET=shapes MODELS="shapes_small shapes_large" BANKS="Prototype Random" bash ip_train.sh
#   bash ip_train.sh --dry-run   (or DRY_RUN=1): shapes, bytes and folders; nothing is made
# Input:  stage 2's embeddings (for Text and Combined those of extractor/textual_emb_extractor.py too).
# Output: $OUT/IP_BANK/MODEL/...: ledger, predictors, IIS table and plot; a few MB; a comparison in $RESULTS. Memory:
#         the representations, 11 GB for ResNet-50 on ImageNet, where half of what is free holds them; else they are read
#         from their file. shapes: half a minute a backbone on 2 cores.
# Expect: for each seed the dense heads, then 8 ratios x 3 learning rates together; ARR near 1 without sparsity, falling
#         as fewer concepts stay; an IIS between 0 and 0.98.
set -euo pipefail
cd "$(dirname "$0")"
. iis/stage.sh

DATASET=${DATASET:-imagenet}
MODELS=${MODELS:-resnet50}               # folders of extractor/embs/, as stage 2 named them
BANKS=${BANKS:-Prototype}                # of Prototype Cluster SAE NMF PCA End2End Text Combined SpLiCE Random
ELEMENTS=${ELEMENTS:-segments}           # and/or patches
PROTOCOL=${PROTOCOL:-paper}              # or release
SEEDS=${SEEDS:-3}                        # how many
NUM_CONCEPTS=${NUM_CONCEPTS:-}           # empty: the data set's own
RATIOS=${RATIOS:-}                       # empty: 0,0.1,0.3,0.5,0.7,0.9,0.95,0.98
RECIPE=${RECIPE:-published}              # or converged: sets the next three where they are empty
LEARNING_RATES=${LEARNING_RATES:-}       # empty: 0.001,0.01,0.1
EPOCHS=${EPOCHS:-}                       # empty: 30
HEAD_BATCH_SIZE=${HEAD_BATCH_SIZE:-}     # samples per step of stage 3; empty: 1024
HOLDOUT=${HOLDOUT:-}                     # fraction of train to select on; empty: select on validation, as the release
DEVICE=${DEVICE:-}                       # empty: cuda where there is one
TF32=${TF32:-}                           # 1: products on CUDA in TF32; features in TF32: MODELS=MODEL__tf32
JOBS=${JOBS:-}                           # processes on a CPU; empty: one per core
CLIP_NAME=${CLIP_NAME:-}                 # Text, Combined, SpLiCE: CLIP, cut-offs, words; empty: as published
CLIP_CUTOFF=${CLIP_CUTOFF:-}
INTERPRETABILITY_CUTOFF=${INTERPRETABILITY_CUTOFF:-}
CONCEPT_SET=${CONCEPT_SET:-}
OUT=${OUT:-IP_training}                  # folder of all ledgers
RESULTS=${RESULTS:-results/$DATASET}     # folder of the comparison
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

common=(--dataset "$DATASET" --protocol "$PROTOCOL" --seeds "$SEEDS" --recipe "$RECIPE" --save_root "$OUT"
        ${NUM_CONCEPTS:+--num_concepts "$NUM_CONCEPTS"} ${RATIOS:+--ratios "$RATIOS"}
        ${LEARNING_RATES:+--learning_rates "$LEARNING_RATES"} ${HEAD_BATCH_SIZE:+--batch_size "$HEAD_BATCH_SIZE"}
        ${EPOCHS:+--n_epoch "$EPOCHS"} ${TF32:+--tf32}
        ${HOLDOUT:+--holdout "$HOLDOUT"} ${JOBS:+--jobs "$JOBS"} ${DEVICE:+--device "$DEVICE"} ${DRY_RUN:+--dry_run})
words=(${CLIP_NAME:+--clip_name "$CLIP_NAME"} ${CONCEPT_SET:+--concept_set "$CONCEPT_SET"})
text=(${words[@]+"${words[@]}"} ${CLIP_CUTOFF:+--clip_cutoff "$CLIP_CUTOFF"}
      ${INTERPRETABILITY_CUTOFF:+--interpretability_cutoff "$INTERPRETABILITY_CUTOFF"})
roots=()
for model in $MODELS; do
    for bank in $BANKS; do
        kinds=$ELEMENTS
        case $bank in
            Prototype|Cluster|SAE|End2End) script=(IP_"$bank"_training.py) ;;
            NMF|PCA)  script=(IP_Dictionary_training.py --kind "$bank") ;;
            SpLiCE)   script=(IP_Dictionary_training.py --kind SpLiCE ${words[@]+"${words[@]}"}); kinds=segments ;;
            Text)     script=(IP_Text_training.py --sparsity_ratio ${text[@]+"${text[@]}"}); kinds=segments ;;
            Combined) script=(IP_Bank_training.py --kind Combined ${text[@]+"${text[@]}"}) ;;
            Random)   script=(IP_Bank_training.py --kind Random); kinds=segments ;;
            *) echo "BANKS=$bank is not known: use Prototype Cluster SAE NMF PCA End2End Text Combined SpLiCE or Random" >&2
               exit 2 ;;
        esac
        for kind in $kinds; do    # Text, SpLiCE and Random are made of no visual elements: once is enough
            "$PYTHON" "IP_training/${script[0]}" "${script[@]:1}" --model_name "$model" --element_kind "$kind" "${common[@]}"
        done
        roots+=("$OUT/IP_$bank/$model")
    done
done
if [ -z "$DRY_RUN" ]; then    # every setting of this data set so far
    "$PYTHON" iis_computing.py --model_root "${roots[@]}" --dataset "$DATASET" --save_dir "$RESULTS"
fi
