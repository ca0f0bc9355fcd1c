#!/usr/bin/env bash
# Stages 3 and 4: train the interpretation predictors of every backbone and bank named, then print their IIS.
#   bash ip_train.sh                                               ResNet-50 on ImageNet, Prototype bank, as published
#   DATASET=shapes MODELS="shapes_small shapes_large" BANKS="Prototype Random" bash ip_train.sh
#   bash ip_train.sh --dry-run   (or DRY_RUN=1): shapes, disk, memory and time; nothing is made
# Input:  stage 2's embeddings (for Text and Combined those of extractor/textual_emb_extractor.py too).
# Output: IP_training/IP_BANK/MODEL/...: ledger, predictors, IIS table and plot; a few MB. The representations
#         stay in memory: 11 GB for ResNet-50 on ImageNet. shapes: about half a minute for a backbone on 2 cores.
# Expect: 8 ratios x 3 learning rates x SEEDS cells and a dense head, in one pass over the data per epoch; ARR near 1
#         without sparsity, falling as fewer concepts stay; an IIS between 0 and 0.98.
set -euo pipefail
cd "$(dirname "$0")"
. iis/stage.sh

DATASET=${DATASET:-imagenet}
MODELS=${MODELS:-resnet50}               # folders of extractor/embs/
BANKS=${BANKS:-Prototype}                # of Prototype Cluster End2End Text Combined Random
ELEMENTS=${ELEMENTS:-segments}           # and/or patches
PROTOCOL=${PROTOCOL:-paper}              # or release
SEEDS=${SEEDS:-3}                        # how many
NUM_CONCEPTS=${NUM_CONCEPTS:-}           # empty: the data set's own
RATIOS=${RATIOS:-}                       # empty: 0,0.1,0.3,0.5,0.7,0.9,0.95,0.98
EPOCHS=${EPOCHS:-30}
DEVICE=${DEVICE:-}                       # empty: cuda where there is one
CLIP_NAME=${CLIP_NAME:-}                 # Text, Combined: the CLIP, its cut-offs and the words; empty: as published
CLIP_CUTOFF=${CLIP_CUTOFF:-}
INTERPRETABILITY_CUTOFF=${INTERPRETABILITY_CUTOFF:-}
CONCEPT_SET=${CONCEPT_SET:-}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

common=(--dataset "$DATASET" --protocol "$PROTOCOL" --seeds "$SEEDS" --n_epoch "$EPOCHS"
        ${NUM_CONCEPTS:+--num_concepts "$NUM_CONCEPTS"} ${RATIOS:+--ratios "$RATIOS"} ${DEVICE:+--device "$DEVICE"}
        ${DRY_RUN:+--dry_run})
text=(${CLIP_NAME:+--clip_name "$CLIP_NAME"} ${CLIP_CUTOFF:+--clip_cutoff "$CLIP_CUTOFF"}
      ${INTERPRETABILITY_CUTOFF:+--interpretability_cutoff "$INTERPRETABILITY_CUTOFF"}
      ${CONCEPT_SET:+--concept_set "$CONCEPT_SET"})
roots=()
for model in $MODELS; do
    for bank in $BANKS; do
        kinds=$ELEMENTS
        case $bank in
            Prototype|Cluster|End2End) script=(IP_"$bank"_training.py) ;;
            Text)     script=(IP_Text_training.py --sparsity_ratio ${text[@]+"${text[@]}"}); kinds=segments ;;
            Combined) script=(IP_Bank_training.py --kind Combined ${text[@]+"${text[@]}"}) ;;
            Random)   script=(IP_Bank_training.py --kind Random); kinds=segments ;;
            *) echo "BANKS=$bank is not known: use Prototype, Cluster, End2End, Text, Combined or Random" >&2; exit 2 ;;
        esac
        for kind in $kinds; do    # Text and Random are made of no visual elements: once is enough
            "$PYTHON" "IP_training/${script[0]}" "${script[@]:1}" --model_name "$model" --element_kind "$kind" "${common[@]}"
        done
        roots+=("IP_training/IP_$bank/$model/${DATASET}_"*)    # every setting so far
    done
done
summary "stage 3 ($BANKS of $MODELS on $DATASET)" heads
trained=$SECONDS
"$PYTHON" iis_computing.py --model_root "${roots[@]}" --save_dir "results/$DATASET" ${DRY_RUN:+--dry_run}
[ -n "$DRY_RUN" ] || echo "stage 4 (IIS of the same): $((SECONDS - trained)) s, ${#roots[@]} settings"
