# Sourced by the three bash scripts: --dry-run (or DRY_RUN=1), and one summary line per stage with seconds and rate.
DRY_RUN=${DRY_RUN:-}
for word in "$@"; do
    case $word in
        --dry-run|--dry_run) DRY_RUN=1 ;;
        *) echo "error: $word is not known: settings are environment variables, and the one argument is --dry-run" >&2
           exit 2 ;;
    esac
done
if [ "$DRY_RUN" = 0 ]; then DRY_RUN=; fi
IIS_TALLY=$(mktemp)    # a line for every script: how much it made
export IIS_TALLY
trap 'rm -f "$IIS_TALLY"' EXIT

summary() {    # STAGE UNIT: what was made since the script began
    if [ -n "$DRY_RUN" ]; then
        echo "$1: dry run, nothing was made"
    else
        awk -v stage="$1" -v unit="$2" -v seconds="$SECONDS" '{ made += $1 } END {
            printf "%s: %d s, %d %s, %.1f %s/s\n", stage, seconds, made, unit, made / (seconds > 0 ? seconds : 1), unit
        }' "$IIS_TALLY"
    fi
}
