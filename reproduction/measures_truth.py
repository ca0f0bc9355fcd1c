"""Which measure orders representations, and banks, by their true content? IIS, lift, area over log k, NCC, ANEC.

    python reproduction/measures_truth.py            # after score_truth.py, accuracy_at_nec.py and bank_truth.py

Representations: ρ of the share of true attributes and the measure over the features of score_truth.py, for each draw.
Banks: ρ of the mean AUROC of a bank's best concepts (bank_truth.py) and the measure over the banks of a model. NCC is
turned: fewer is better. Nothing is trained. Writes measures_truth.md, .csv, .tex.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import run_script, setting
from iis.runtime import UserError, make_output_folder, numpy_rng
from iis.statistics import interval
from reproduction.lib.known_attributes import RESTS
from reproduction.lib.measures import MEASURES
from reproduction.lib.outputs import write_table
from reproduction.lib.runs import REPRODUCED
from reproduction.lib.statistics import DRAWS, FEWEST, FEWEST_FOR_BOOTSTRAP, paired_difference, rank_correlation
from reproduction.score_truth import BANKS

SETS = ("rest", "share", "draw", "bank")
EQUAL = RESTS[:2]  # the rests under which accuracy is held equal: what falls there is not accuracy
Interval = tuple[float, float | None, float | None]  # a value and the ends of its interval, None where there is none
REFERENCE = {"dense": ("dense top-1, for reference", 1)}
CAPTION = (
    "Spearman's ρ with true content. Representations: with the share of attributes, mean over {draws} draws; ρ: mean "
    "of class code and scattered code, under which a linear classifier's accuracy is equal at every share, with its "
    "Student 95 % interval over draws. Sets whose dense head is close to chance are left out. Banks: with the mean "
    "AUROC of their best concepts, over the {banks} banks that all {models} models have, mean over models, with the "
    "95 % interval of resampled banks. Δ: paired difference to the ρ of the IIS. NCC is turned, because fewer is "
    "better. Among banks of one model and M the lift is the IIS less one number, so it orders them alike. An order "
    "that is the same in every draw has an interval without width, which is no certainty.")


@dataclass(kw_only=True)
class Settings:
    """What is read, and the output."""

    score_truth: Path = setting(REPRODUCED / "score_truth" / "score_truth.csv", "what score_truth.py wrote")
    bank_truth: Path = setting(REPRODUCED / "shapes" / "bank_truth.csv", "what bank_truth.py wrote")
    save_dir: Path = setting(REPRODUCED / "score_truth", "output folder")


def main(settings: Settings) -> Path:
    """Write the table. Returns its folder."""
    features, banks = (_read(file, script, columns) for file, script, columns in (
        (settings.score_truth, "score_truth.py", (*SETS, "near_chance", *MEASURES, *REFERENCE)),
        (settings.bank_truth, "bank_truth.py", ("model", "M", "bank", "auroc", *MEASURES))))
    folder = make_output_folder(settings.save_dir)
    lines = [line for bank in BANKS for line in of_representations(features, bank)] + of_banks(banks)
    print(write_table(folder, "measures_truth", lines, [for_people(line) for line in lines], CAPTION.format(
        draws=features["draw"].nunique(), banks=lines[-1]["sets"],
        models=banks.dropna(subset="iis")["model"].nunique())))
    print(f"written: {folder}/measures_truth.csv")
    return folder


def _read(file: Path, script: str, columns: Sequence[str]) -> pd.DataFrame:
    if not file.is_file():
        raise UserError(f"there is no file {file}: run reproduction/{script}, or name another one")
    found = pd.read_csv(file)
    if missing := [name for name in columns if name not in found]:
        raise UserError(f"{file} lacks the column {missing[0]}: run reproduction/{script} again")
    return found


def of_representations(found: pd.DataFrame, bank: str) -> list[dict[str, Any]]:
    """A line per measure of the features of score_truth.csv under one of its banks: ρ with the share for each rest, the
    mean of those of equal accuracy with its interval over draws, and its difference to the IIS. None where there are
    fewer than three shares, or the measure is missing or constant."""
    mine = found[(found["bank"] == bank) & ~found["near_chance"]]
    names = {**MEASURES, **REFERENCE}
    rhos = pd.DataFrame([{"rest": rest, "draw": draw, **{name: _rho(sets["share"], sign * sets[name])
                                                         for name, (_, sign) in names.items()}}
                         for (rest, draw), sets in mine.groupby(["rest", "draw"])],
                        columns=["rest", "draw", *names])
    by_draw = rhos[rhos["rest"].isin(EQUAL)].groupby("draw")[list(names)].agg(lambda one: one.mean(skipna=False))
    by_rest = rhos.groupby("rest")[list(names)].agg(lambda one: one.mean(skipna=False))
    lines = []
    for name in names:
        values, base = by_draw[name], by_draw["iis"]
        whole, delta = (_over_draws(values - other) for other in (0.0, base))
        lines.append({"of": f"representations, bank: {BANKS[bank]}", "measure": name,
                      **{f"rho, {rest}": _number(by_rest[name].get(rest)) for rest in RESTS},
                      **_columns(whole, None if name == "iis" else delta), "sets": len(values)})
    return lines


def _over_draws(values: pd.Series) -> Interval | None:
    """Mean over draws with Student's 95 % interval; None where a draw has none."""
    if values.empty or values.isna().any():
        return None
    found = paired_difference(values, np.zeros(len(values)))
    return found.mean, found.low, found.high


def of_banks(found: pd.DataFrame) -> list[dict[str, Any]]:
    """A line per measure of the lines of bank_truth.csv that have an IIS: mean over models of ρ with the AUROC over the
    banks that all models have, with the interval of resampled banks (the same ones in every model), and its difference
    to the IIS. None where the measure is missing or constant, or there are fewer than three banks; no interval below
    five."""
    found = found.dropna(subset="iis").assign(bank=lambda lines: lines["bank"] + ", M = " + lines["M"].astype(str))
    truth = found.pivot(index="bank", columns="model", values="auroc").dropna()  # (banks, models)
    count, drawn = len(truth), {}
    resamples = numpy_rng("banks", count).integers(count, size=(DRAWS * (count >= FEWEST_FOR_BOOTSTRAP), count))
    picks_BK = np.vstack([np.arange(count), resamples])  # the banks as they are come first
    for name, (_, sign) in MEASURES.items():
        values = sign * found.pivot(index="bank", columns="model", values=name).loc[truth.index]
        missing = values.isna().any(axis=None) or count < FEWEST
        drawn[name] = np.full(len(picks_BK), np.nan) if missing else np.mean(
            [rank_correlation(*(np.round(one[model].to_numpy()[picks_BK], 12) for one in (truth, values)))
             for model in truth], axis=0)
    return [{"of": "banks of a model", "measure": name, **{f"rho, {rest}": None for rest in RESTS},
             **_columns(_resampled(of_name), None if name == "iis" else _resampled(of_name - drawn["iis"])),
             "sets": count} for name, of_name in drawn.items()]


def _resampled(drawn: np.ndarray) -> Interval | None:
    """drawn[0], and the interval of the other values that are defined."""
    others = drawn[1:][np.isfinite(drawn[1:])]
    return None if np.isnan(drawn[0]) else (float(drawn[0]), *(interval(others) if len(others) else (None, None)))


def _rho(x: pd.Series, y: pd.Series) -> float:
    """Spearman's ρ; NaN below three values, or where one is missing or all are equal."""
    if len(x) < FEWEST or y.isna().any():
        return np.nan
    return float(rank_correlation(x.to_numpy(float)[None], np.round(y.to_numpy(float), 12)[None])[0])


def _columns(rho: Interval | None, delta: Interval | None) -> dict[str, float | None]:
    """Both with their intervals; ρ ends at ±1."""
    within = rho and (rho[0], *(None if end is None else float(np.clip(end, -1, 1)) for end in rho[1:]))
    return dict(zip(("rho", "low", "high", "delta", "delta_low", "delta_high"),
                    (*(within or (None,) * 3), *(delta or (None,) * 3)), strict=True))


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def for_people(line: dict[str, Any]) -> dict[str, str]:
    """A line as people read it."""
    def text(mean: str, low: str, high: str) -> str:
        within = "" if line[low] is None else f" [{line[low]:+.2f}, {line[high]:+.2f}]"
        return "-" if line[mean] is None else f"{line[mean]:+.2f}{within}"

    return {"of": line["of"], "measure": {**MEASURES, **REFERENCE}[line["measure"]][0],
            **{rest: "" if line[f"rho, {rest}"] is None else f"{line[f'rho, {rest}']:+.2f}" for rest in RESTS},
            "ρ [95 %]": text("rho", "low", "high"), "Δ to the IIS [95 %]": text("delta", "delta_low", "delta_high")}


if __name__ == "__main__":
    run_script(main, Settings)
