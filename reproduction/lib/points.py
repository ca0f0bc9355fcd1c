"""Runs as the points of a figure: which of them may be compared, what to call them, and what to say beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from iis.equations import area, too_close_to_chance
from IP_training.config import PROTOCOLS
from reproduction.lib.runs import Run

# Runs are comparable where these agree; titles tell them where they differ.
SETTING = ("bank", "parts", "num_concepts", "elements", "protocol", *PROTOCOLS["paper"], "concept_set", "holdout")
ORDER = ("Prototype", "Cluster", "End2End", "Text", "Combined", "Random")


def plain(runs: Sequence[Run]) -> list[Run]:
    """The runs that a sweep does not call a variant (controls have a table of their own), in the order of banks."""
    kept = [run for run in runs if not run.variant]
    if len(kept) < len(runs):
        print(f"left out: {len(runs) - len(kept)} of {len(runs)} runs are variants of another one (controls)")
    return sorted(kept, key=lambda run: (run.summary["dataset"], _place(run), run.identity["num_concepts"] or 0,
                                         tuple(map(str, setting(run))), run.family, epoch_of(run.model) or 0,
                                         run.model))


def finished(runs: Sequence[Run]) -> list[Run]:
    """`plain`, without checkpoints along pre-training where there is anything else."""
    kept = plain(runs)
    return [run for run in kept if epoch_of(run.model) is None] or kept


def _place(run: Run) -> int:
    bank = run.summary["bank"]
    return ORDER.index(bank) if bank in ORDER else len(ORDER)


def setting(run: Run) -> tuple[Any, ...]:
    """What must agree between runs that are compared, beside the data set; in the order of SETTING, None where the bank
    has no such thing."""
    said = {**run.identity, "parts": " + ".join(run.identity.get("parts") or []) or None, "elements": _elements(run)}
    return tuple(said.get(name) for name in SETTING)


def _elements(run: Run) -> str | None:
    """`segments`; told too: another data set that they come from, another protocol that stage 1 made them under."""
    made, dataset, protocol = run.identity["elements"], run.summary["dataset"], run.summary["protocol"]
    if not made:
        return None
    of = f" of {made['dataset']}" if made.get("dataset", dataset) != dataset else ""
    cut = f" (stage 1: {made['protocol']})" if made.get("protocol", protocol) != protocol else ""
    return f"{made.get('kind')}{of}{cut}"


def groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """{(data set, title of the bank): comparable runs}; a title is the bank, and what differs between its settings."""
    found: dict[tuple[str, tuple[Any, ...]], list[Run]] = {}
    for run in runs:
        found.setdefault((run.summary["dataset"], setting(run)), []).append(run)
    titled: dict[tuple[str, str], list[Run]] = {}
    for (dataset, words), mine in found.items():
        title = _title(words, [other for name, other in found if name == dataset])
        while (dataset, title) in titled:  # they differ in nothing a title tells
            title += " (another)"
        titled[dataset, title] = mine
    return titled


def _title(words: tuple[Any, ...], all_words: Sequence[tuple[Any, ...]]) -> str:
    rivals = [dict(zip(SETTING, other, strict=True)) for other in all_words if other[0] == words[0]]
    said = dict(zip(SETTING, words, strict=True))
    usual = {**PROTOCOLS.get(said["protocol"], {}), "protocol": "paper", "holdout": 0.0}
    shown = {"num_concepts": f"M = {said['num_concepts'] or 'all words'}", "holdout": f"holdout {said['holdout']}"}
    told = [shown.get(name, str(said[name])) for name in SETTING[1:]
            if len({rival[name] for rival in rivals}) > 1 and said[name] != usual.get(name)]
    return ", ".join([said["bank"], *told])


def epoch_of(model: str) -> int | None:
    """4 of `shapes_large_epoch4`; None for a model that is no checkpoint."""
    match = re.search(r"_epoch(\d+)$", model)
    return int(match[1]) if match else None


def short_name(run: Run) -> str:
    """What tells a model within its family: `50` of resnet50, `small` of shapes_small."""
    return run.model.removeprefix(run.family).lstrip("_-:") or run.model


def net_of(model: str) -> str:
    """The net that a checkpoint belongs to; the model itself where it is none."""
    return re.sub(r"_epoch\d+$", "", model)


def undivided(run: Run) -> float:
    """∫ acc(s) ds, mean over seeds: the IIS without its division by the dense accuracy."""
    return float(np.mean(area(run.summary["ratios"], run.summary["curves"]["best"]["accuracy"])))


def meaningful(run: Run) -> bool:
    """False where the dense head is so near chance that ARR and IIS mean nothing."""
    summary = run.summary
    return not too_close_to_chance(summary["dense"]["mean"], summary["chance"], summary["n_val"])


def warning(run: Run) -> str:
    """`near chance`, `saturated` or nothing, as the summary's remarks have it."""
    if not meaningful(run):
        return "near chance"
    return "saturated" if any("saturated" in remark for remark in run.summary["remarks"]) else ""


def point(run: Run, bank: str) -> dict[str, Any]:
    """One run as a line of numbers; accuracies are fractions. bank: the title of its group."""
    summary = run.summary
    low, high = summary["bootstrap"]["interval_95"]
    return {"dataset": summary["dataset"], "bank": bank, "family": run.family, "model": run.model,
            "epoch": epoch_of(run.model), "seeds": len(summary["seeds"]), "num_concepts": summary["num_concepts"],
            "width": summary["width"], "dense": summary["dense"]["mean"], "dense_std": summary["dense"]["std"],
            "iis": run.iis, "iis_std": summary["iis"]["std"], "bootstrap_low": low, "bootstrap_high": high,
            "area": undivided(run), "iis_chance_corrected": summary["iis_chance_corrected"]["mean"],
            "iis_chance_corrected_std": summary["iis_chance_corrected"]["std"], "warning": warning(run)}


def counted(count: int, what: str) -> str:
    """"1 model", "3 models"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def seeds_said(runs: Sequence[Run]) -> str:
    """"3 seeds", "1 to 3 seeds"."""
    counts = sorted({len(run.summary["seeds"]) for run in runs})
    return (f"{counts[0]} to " if len(counts) > 1 else "") + counted(counts[-1], "seed")


def models_said(runs: Sequence[Run]) -> str:
    """"5 models (3 independent nets)"."""
    return f"{counted(len({run.model for run in runs}), 'model')} ({counted(nets_of(runs), 'independent net')})"


def nets_of(runs: Sequence[Run]) -> int:
    """Number of independent nets: checkpoints of one net count once."""
    return len({net_of(run.model) for run in runs})


def slug(text: str) -> str:
    """A title as part of a file name: `Prototype, M = 16` → Prototype_M16."""
    return re.sub(r"[^\w.]+", "_", text.replace(" = ", "")).strip("_")
