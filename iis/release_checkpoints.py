"""A folder of checkpoints named as the release names them, and the number the release's rule gives.

    standard##0.01##0.842##0.7613##0.9286.pth        standard##lr##loss##top1##top5      the dense head
    200##0.7##0.01##0.911##0.6402##0.8511.pth        M##s##lr##loss##top1##top5          a predictor

Accuracies are fractions. Only the names are read.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from iis.runtime import UserError
from iis.score import accuracy_retention, area, require_ratios, span


def is_release_folder(folder: Path) -> bool:
    """True where at least one file bears such a name."""
    return any("##" in file.name for file in Path(folder).glob("*.pth"))


def release_summary(folder: Path) -> list[dict[str, Any]]:
    """One result per M: best top-1 per ratio over best dense top-1 (not the last one listed), and the area.

    Raises `UserError` for a name that does not parse, a missing dense head or a missing ratio.
    """
    dense: list[float] = []
    best: dict[int, dict[float, float]] = defaultdict(dict)
    for file in sorted(Path(folder).glob("*##*.pth")):
        parts = file.name.removesuffix(".pth").split("##")
        try:
            if parts[0] == "standard":
                _, _, _, top1, _ = parts
                dense.append(float(top1))
            else:
                count, ratio, _, _, top1, _ = parts
                best[int(count)][float(ratio)] = max(float(top1), best[int(count)].get(float(ratio), 0.0))
        except ValueError:
            raise UserError(f"{file} is not named standard##lr##loss##top1##top5.pth or "
                            "M##s##lr##loss##top1##top5.pth; move it out of the folder") from None
    if not dense:
        raise UserError(f"{folder} has no dense head (standard##lr##loss##top1##top5.pth), so there is nothing to "
                        "divide by")
    if not best:
        raise UserError(f"{folder} has a dense head but no predictor (M##s##lr##loss##top1##top5.pth)")
    results = []
    for count, accuracies in sorted(best.items()):
        require_ratios(list(accuracies), where=f"{folder}, M = {count},")
        ratios = sorted(accuracies)
        retention = accuracy_retention([accuracies[ratio] for ratio in ratios], max(dense))
        score = float(area(ratios, retention))
        results.append({"num_concepts": count, "dense": max(dense), "ratios": ratios, "arr": retention.tolist(),
                        "accuracy": [accuracies[ratio] for ratio in ratios], "iis": score,
                        "normalised": score / span(ratios)})
    return results
