# Sourced by the three bash scripts: --dry-run (or DRY_RUN=1).
DRY_RUN=${DRY_RUN:-}
for word in "$@"; do
    case $word in
        --dry-run|--dry_run) DRY_RUN=1 ;;
        *) echo "error: $word is not known: settings are environment variables, and the one argument is --dry-run" >&2
           exit 2 ;;
    esac
done
if [ "$DRY_RUN" = 0 ]; then DRY_RUN=; fi
if [ -n "$DRY_RUN" ]; then    # files counted so far: each counts once, whichever scripts share it
    IIS_PLANNED=$(mktemp); export IIS_PLANNED; trap 'rm -f "$IIS_PLANNED"' EXIT
fi
