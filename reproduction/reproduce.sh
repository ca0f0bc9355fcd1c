#!/usr/bin/env bash
# Every table and figure, from ledgers that the sweeps train. `make reproduce` runs it for `shapes` after `make demo`.
#   bash reproduction/reproduce.sh                          shapes
#   IIS_DATA=/path/to/data SWEEPS="shapes cifar10" bash reproduction/reproduce.sh
# Input:  shapes: what `make demo` made. cifar10: $IIS_DATA, and what reproduction/cifar10.sh made.
# Output: results/reproduction/SWEEP/: tables as .md, .csv and .tex, figures as .png and .pdf, report.html
# Time:   shapes an hour or two on 2 cores (not timed as a whole); cifar10 hours, fine-tuning most of it. Killed and started again, it goes on.
# Expect: a list of what was made; a table that fails does not stop the others, and is named at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
SWEEPS=${SWEEPS:-shapes}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
failed=$(mktemp)
lane=    # the process group of fine-tuning, while it runs beside the rest
trap 'rm -f "$failed"; [ -z "$lane" ] || kill -- "-$lane" 2> /dev/null' EXIT
trap 'exit 130' INT    # else Ctrl-C would stop one table and go on with the next

step() {    # a script of reproduction/ with its flags
    local started=$SECONDS script=$1
    shift
    echo "== $script $*"
    "$PYTHON" "reproduction/$script.py" "$@" || echo "$script $*" >> "$failed"
    echo "-- $script: $((SECONDS - started)) s"
}

made() {    # what lies in another folder, beside the rest: the report takes all tables and figures it finds
    find "$1" -maxdepth 1 -name '*.*' ! -name '*.jsonl' -type f -exec cp {} "$out" \; 2> /dev/null
}

for sweep in $SWEEPS; do
    out=results/reproduction/$sweep
    mkdir -p "$out"
    step sweep "$sweep"
    # Two scripts at a time: PyTorch's threads would wait for each other, processes of one thread share the cores.
    export OMP_NUM_THREADS=1
    set -m    # a process group of its own
    {
        step finetuning "finetuning_$sweep"
        step finetuning_table --sweep "finetuning_$sweep" --save_dir "$out"
    } > "$out/finetuning.log" 2>&1 &
    lane=$!
    set +m
    step iis_against_accuracy --sweep "$sweep"
    step arr_curves --sweep "$sweep"
    step accuracy_at_nec --sweep "$sweep"
    step ncc --sweep "$sweep"
    step which_bank --sweep "$sweep"
    step predictions_table --sweep "$sweep"
    step controls_table --sweep "$sweep"
    step faithfulness --sweep "$sweep"
    if [ "$sweep" = shapes ]; then      # its checkpoints along pre-training are at hand, and its concepts are known
        step along_pretraining --sweep shapes
        step bank_truth --sweep shapes
        step explain --run IP_training/IP_Prototype/shapes_large/shapes_segments_M64
        step variance_shares --dataset shapes --model shapes_medium --save_dir results/reproduction/variance_shapes
        made results/reproduction/variance_shapes
        step score_truth
        made results/reproduction/score_truth
        step measures_truth --save_dir "$out"
        step recipe --dataset shapes --models shapes_small,shapes_medium,shapes_large --num_concepts 64 \
            --save_dir results/reproduction/recipe_shapes
        made results/reproduction/recipe_shapes
        step sweep shapes_banks
        step bank_truth --sweep shapes_banks
        step sweep shapes_nets
        step iis_against_accuracy --sweep shapes_nets
        for file in results/reproduction/shapes_nets/iis_*; do    # beside the tables of the same names
            [ ! -f "$file" ] || cp "$file" "$out/nets_${file##*/}"
        done
    fi
    echo "fine-tuning goes on (tail -f $out/finetuning.log)"
    wait
    lane=
    grep -E '^(--|[a-z0-9_]+: .* cells finished)' "$out/finetuning.log"
    unset OMP_NUM_THREADS
    step compare --collect --sweep "$sweep" --ours results/ours.csv --save_dir "$out"
    step report --sweep "$sweep"
done
if [ -s "$failed" ]; then
    echo "error: not made: $(paste -sd ';' "$failed"); mend them and start the same command again" >&2
    exit 1
fi
echo "all tables and figures of $SWEEPS: $SECONDS s; results/reproduction/"
