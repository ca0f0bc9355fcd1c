"""Lift over Random: the part of an IIS that the concepts earn, beyond random directions of the same number.

    lift = ∫ (ARR(s) − ARR_Random(s)) ds        at equal features, seeds, k and recipe, paired by seed and image

Ours. Both have the same dense heads, so the lift is also the difference of the two IIS. Among banks of one
representation and one M it takes the same number off each: it orders them as the IIS does.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iis.cli import read_yaml
from iis.equations import accuracy_retention, area
from iis.grid import DENSE, LEARNING_RATES, RATIOS
from iis.results import LEDGER, first_row, read_ledger, select
from iis.runtime import ROOT, UserError
from iis.statistics import bootstrap_iis, interval, mean_std, over_seeds
from iis.summary import correct_of, seeds_and_ratios

CONTROL = "Random"
FEATURES = ("train_hash", "val_hash")
# Recipe that must agree; a ledger leaves out what it does not set.
RECIPE = ("sparsifier", "epochs", "batch_size", "holdout", "bank_seed", "tf32")
# Settings that a control takes over from settings.yaml: where the features are.
FILES = ("train_pt", "val_pt", "train_labels", "val_labels", "feature_layer", "activation_dir", "dense_heads_dir")


class Lift(NamedTuple):
    """mean and std (ddof 1; None for one seed) over the `seeds` that both have; interval_95: over seeds and validation
    images, of one seed over images alone; control: the Random run's folder, or what `lift` was told."""

    mean: float
    std: float | None
    per_seed: list[float]
    interval_95: tuple[float, float]
    seeds: list[int]
    control: str = ""

    def text(self) -> str:
        """"+0.0101 ± 0.0032 [+0.0020, +0.0182]"."""
        low, high = self.interval_95
        return f"{self.mean:+.4f}" + ("" if self.std is None else f" ± {self.std:.4f}") + f" [{low:+.4f}, {high:+.4f}]"


def lift(rows: Sequence[dict[str, Any]], control: Sequence[dict[str, Any]], draws: int = 1000, where: str = "") -> Lift:
    """The lift of one ledger's rows over those of a Random bank (`where`).

    Of two ledgers with different seeds the common ones count, two at least. Raises `UserError` where features, recipe,
    ratios, learning rates or k differ, or too few seeds are common.
    """
    if differing := differences(rows[0], control[0]):
        raise UserError(f"no lift over {where or CONTROL}: it differs in {', '.join(differing)}")
    grids = [{(row["ratio"], row["learning_rate"]) for row in one} for one in (rows, control)]
    if grids[0] != grids[1]:
        raise UserError(f"no lift over {where or CONTROL}: it has other ratios or learning rates")
    own, others = ({row["seed"] for row in one} for one in (rows, control))
    seeds = sorted(own & others)
    if not seeds or (len(seeds) < 2 and len(own) > 1):
        raise UserError(f"no lift over {where or CONTROL}: {len(seeds)} seeds are common, and 2 are needed")
    rows, control = ([row for row in one if row["seed"] in seeds] for one in (rows, control))
    seeds_and_ratios(control, where or CONTROL)
    _, ratios = seeds_and_ratios(rows, "the run")
    chosen, of_control = select(rows), select(control)
    kept = [[[one[seed, ratio]["kept"] for ratio in ratios] for seed in seeds] for one in (chosen, of_control)]
    if kept[0] != kept[1]:
        raise UserError(f"no lift over {where or CONTROL}: it keeps {kept[1][0]} concepts, the run {kept[0][0]}")
    # All 2R curves in one bootstrap, so that one resample of the images serves both.
    correct_RSN, dense_RN = (np.concatenate(pair) for pair in zip(
        *(correct_of(one, seeds, ratios) for one in (chosen, of_control)), strict=True))
    retention_RS = accuracy_retention(correct_RSN.mean(-1), dense_RN.mean(-1))
    per_seed, drawn_BR = (
        scores[..., :len(seeds)] - scores[..., len(seeds):]
        for scores in (area(ratios, retention_RS), bootstrap_iis(ratios, correct_RSN, dense_RN, draws)))
    return Lift(*mean_std(per_seed), per_seed.tolist(), interval(over_seeds(drawn_BR)), seeds, where)


def differences(row: dict[str, Any], control: dict[str, Any]) -> list[str]:
    """What keeps a Random run from being the control of a run, from a row of each: names of `FEATURES`, of `RECIPE`,
    "bank". Features without a hash are of unknown origin and count as different."""
    found = [name for name in FEATURES if not row.get(name) or row.get(name) != control.get(name)]
    found += [name for name in RECIPE if row.get(name) != control.get(name)]
    return found + (["bank"] if control.get("bank") != CONTROL else [])


def lift_of_ledger(file: Path, ledgers: Iterable[Path] = (), draws: int = 1000) -> Lift | None:
    """The lift of a ledger over the Random run of the same features, if there is one; None for a Random run itself.

    Looked for among `ledgers`, beside the run's folder, and where the published layout has it: for
    IP_BANK/MODEL/SETTING below IP_Random/MODEL. Raises `UserError` with the command that makes it where there is none.
    """
    file = Path(file).resolve()
    row = first_row(file)
    if row.get("bank") == CONTROL:
        return None
    folder, refused = file.parent, []
    places = [*ledgers, *sorted(folder.parent.glob(f"*/{LEDGER}"))]
    if _published(folder):
        places += sorted((folder.parents[1].parent / f"IP_{CONTROL}" / folder.parent.name).glob(f"*/{LEDGER}"))
    for place in dict.fromkeys(Path(place).resolve() for place in places):
        if not _is_control(place, row):
            continue
        try:
            return lift(read_ledger(file), read_ledger(place), draws, str(place.parent))
        except UserError as error:  # the next one may do
            refused.append(str(error))
    raise UserError(f"{refused[0]}; make a fitting one with: {command(file)}" if refused else
                    f"no lift over Random: there is no Random run of these features and this recipe here; make it "
                    f"with: {command(file)}")


def _is_control(place: Path, row: dict[str, Any]) -> bool:
    try:
        control = first_row(place)
        return not differences(row, control) and row.get("num_concepts") in (None, control.get("num_concepts"))
    except UserError:  # a damaged ledger has its own sentence elsewhere
        return False


def command(file: Path) -> str:
    """The command that trains the Random control of a ledger, with equal seeds, M and recipe."""
    rows, settings = read_ledger(file), Path(file).parent / "settings.yaml"
    row, given = rows[0], read_yaml(settings) if settings.is_file() else {}
    seeds = sorted({one["seed"] for one in rows})
    sizes = sorted({one["bank_size"] for one in rows if one.get("bank_size")})
    folder = Path(file).resolve().parent
    place = {"save_root": folder.parents[2]} if _published(folder) else {"save_dir": folder.parent / CONTROL}
    flags = {"kind": CONTROL, "num_concepts": row["num_concepts"] or (sizes[0] if sizes else None),
             "model_name": row["model"], "dataset": row["dataset"],
             **{name: given.get(name) for name in FILES},
             "seeds": seeds[-1] - seeds[0] + 1, "first_seed": seeds[0] or None, "n_epoch": row.get("epochs"),
             "batch_size": row.get("batch_size"), "holdout": row["holdout"] or None, "sparsifier": row["sparsifier"],
             "bank_seed": row.get("bank_seed"), "recipe": row.get("recipe"),
             "ratios": _joined({one["ratio"] for one in rows} - {DENSE}),
             "learning_rates": _joined({one["learning_rate"] for one in rows}), **place}
    usual = USUAL | ({} if row.get("recipe") else PUBLISHED)
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items() if value not in (None, "")
             and value != usual.get(name)]
    return " ".join(["python IP_training/IP_Bank_training.py", *words, *(["--tf32"] if row.get("tf32") else [])])


def _joined(numbers: Iterable[float]) -> str:
    return ",".join(str(float(number)) for number in sorted(numbers))


# What IP_Bank_training.py takes where nothing is said; PUBLISHED: unless --recipe is given.
USUAL = {"seeds": 3, "sparsifier": "mask", "ratios": _joined(RATIOS), "save_root": ROOT / "IP_training"}
PUBLISHED = {"n_epoch": 30, "batch_size": 1024, "learning_rates": _joined(LEARNING_RATES)}


def _published(folder: Path) -> bool:
    """Whether a run's folder is …/IP_BANK/MODEL/SETTING."""
    return folder.parents[1].name.startswith("IP_") and folder.parents[1].name != "IP_training"
