"""Which bank? Banks against networks at equal M, and the mean rank of each bank over networks.

    python reproduction/which_bank.py --sweep shapes
    python reproduction/which_bank.py --model_root IP_training --dataset shapes --save_dir results/shapes

which_bank (.csv, .md, .tex): a line per network, M and bank: scores, ANEC (where accuracy_at_nec.py has run), NCC, what
its vectors span, whether another seed finds them again, and the seconds it takes. which_bank_ranks: per M and measure
the banks' mean ranks, Friedman's test and Nemenyi's critical difference (Demšar, JMLR 7, 2006), and a figure
which_bank_DATASET_M (.png, .pdf) with bars that join the banks not told apart. Checkpoints, layers before the last, and
what a sweep calls a variant are left out; a setting that differs otherwise (elements, protocol, epochs) is a bank of
its own. Needs the runs' predictors/, and for NCC their validation features.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import positive, run_script, setting
from iis.grid import DENSE
from iis.names import slug
from iis.processes import in_processes, jobs_that_fit
from iis.results import LEDGER, read_ledger
from iis.runtime import UserError, each, progress
from iis.statistics import mean_std, plus_minus
from reproduction.lib.bank_geometry import effective_rank, stability
from reproduction.lib.figures import panels
from reproduction.lib.measures import MEASURES, stored_levels
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import (
    bank_place,
    beside_shown,
    counted,
    finished,
    groups,
    last_layers,
    percent,
    point,
    seeds_of,
)
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import Friedman, critical_difference, friedman, holm

RANKED = ("iis", "area_log_k", "anec", "ncc")  # of MEASURES; the lift orders the banks of a network as the IIS does
FEW = 5  # networks, below which the test finds next to nothing
BYTES = 2**29  # that the NCC of a run takes
CAPTION = ("Mean ± std over {}; lift with its 95 % interval over seeds and images. ANEC: over the levels in brackets, "
           "which all banks of the network with as many concepts reach; NCC at s = 0 (fewer is better). Stability: "
           "|cosine| of matched rows of two seeds' banks, mean over pairs of seeds; any two: of any two of their rows. "
           "Of a bank with sparse codes, rank and stability are those of its decoder, and NCC counts codes, which are "
           "few even at s = 0. Seconds: to make one seed's bank, and to train one head; an End2End bank is learned "
           "with its head. -: not measured.")
RANKS = ("Mean rank of each bank over N networks, 1 is best; p: Friedman's test that all banks are equal, and after "
         "Holm's correction for all lines; CD: mean ranks that far apart differ (Nemenyi, 5 % for all pairs of a "
         "line). {}A bank or network in which something is missing is left out of the line.")
# Why a line lacks a number.
WHY = {"anec": "run accuracy_at_nec.py on the same runs first; if it has run, no level is reached by all banks of the "
               "network",
       "ncc": "predictors or validation features are gone; run stage 3 again",
       "bank_seconds": "their ledgers are older than this number, or their bank is learned with its head"}


@dataclass(kw_only=True)
class Settings(Source):
    """What is shown."""

    dataset: str | None = setting(None, "only ledgers of this data set (default: all)")
    kept: int = setting(4, "concepts kept at which the .csv has top-1, interpolated in log k", type=positive)
    draws: int = setting(1000, "bootstrap resamples of the images", type=positive)


def main(settings: Settings) -> Path:
    """Write the tables and figures. Returns their folder."""
    folder = output_folder(settings)
    runs = [run for run in finished(find_runs(settings, settings.draws)) if settings.dataset in (None, run.dataset)]
    if not runs:
        raise UserError(f"there is no ledger of {settings.dataset} here; run ip_train.sh first")
    runs = titled(last_layers(runs))
    # A run beside a run: each line is some seconds of NCC and bootstrap, and shares nothing with the others.
    tasks = [lambda _, run=run: each(lambda one: line_of(one, levels_of(one, runs), settings.kept), [run])
             for run in runs]
    found = dict(progress(in_processes(tasks, jobs_that_fit(len(tasks), BYTES)), total=len(tasks), desc="which bank",
                          unit="run"))
    lines, failed = [line for place in range(len(runs)) for line in found[place][0]], []
    for place in range(len(runs)):
        failed += found[place][1]
    if not lines:
        raise UserError("; ".join(failed))
    for name in ("anec", "ncc", "bank_seconds"):
        if gone := sum(line[name] is None for line in lines):
            print(f"{gone} of {len(lines)} lines have no {name}: {WHY[name]}")
    print(write_table(folder, "which_bank", lines, [shown(line) for line in lines], CAPTION.format(seeds_of(runs))))
    write_ranks(folder, lines)
    print(f"written: {folder}/which_bank.csv, which_bank_ranks.csv and a figure for each M")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(runs)} ledgers: {'; '.join(failed)}")
    return folder


# ---- a line per network, M and bank ----


def rows_of(run: Run) -> tuple[str, Any]:
    """Banks are compared within a data set and M."""
    return run.dataset, run.summary["num_concepts"]


def titled(runs: Sequence[Run]) -> list[Run]:
    """The runs with titles that are unique within a network and M, sorted by data set, M, network and bank."""
    found: dict[tuple[Any, ...], Run] = {}
    for key in dict.fromkeys(map(rows_of, runs)):
        mine = [run for run in runs if rows_of(run) == key]
        groups(mine)  # titles: M, which all share, is not in them
        for run in mine:
            if (first := found.setdefault((*key, run.model, run.title), run)) is not run:
                print(f"left out: {run.folder}, the same bank as {first.folder}")
    return sorted(found.values(), key=lambda run: (run.dataset, str(run.summary["num_concepts"]).rjust(9), run.model,
                                                   bank_place(run.summary["bank"]), run.title))


def levels_of(run: Run, runs: Sequence[Run]) -> list[int]:
    """The levels of NEC that all banks of the run's network and M have reached, as far as they are measured."""
    from reproduction.lib.nec import reached_by_all

    return reached_by_all(filter(None, (stored_levels(other) for other in runs
                                        if (other.model, rows_of(other)) == (run.model, rows_of(run)))))


def line_of(run: Run, levels: Sequence[int], kept: int) -> dict[str, Any]:
    """One ledger as one line: means over seeds, standard deviations with ddof 1; accuracies are fractions.

    bank_seconds: to make the bank of a seed; head_seconds: to train a predictor. None: what cannot be measured.
    Raises `UserError` where the predictors, and with them the bank, are gone.
    """
    from reproduction.lib.nec import over_seeds
    from reproduction.ncc import measure as contributing

    seeds, summary = run.summary["seeds"], run.summary
    banks = [[bank.vectors_MD.numpy() for bank in run.banks(seed).values()] for seed in seeds]  # of End2End per ratio
    stable = [stability(of_ratio) for of_ratio in zip(*banks, strict=True)]
    stored = stored_levels(run)
    anec = over_seeds(stored, levels)[-1] if stored else {"top1": None, "top1_std": None, "levels": ""}
    ncc, _ = each(lambda one: contributing(one, draws=2, ratios=[0.0])[0], [run])
    ncc = ncc[0] if ncc else {"ncc": None, "ncc_std": None}
    at_kept, at_kept_std = mean_std([accuracy_at(kept, summary["kept"], curve)
                                     for curve in summary["curves"]["best"]["accuracy"]])
    rows = [row for row in read_ledger(run.folder / LEDGER) if row["ratio"] != DENSE]
    return {**point(run), "kind": summary["bank"], "protocol": summary["protocol"], "elements": run.elements,
            "anec": anec["top1"], "anec_std": anec["top1_std"], "anec_levels": anec["levels"],
            "ncc": ncc["ncc"], "ncc_std": ncc["ncc_std"], "kept": kept, "top1_at_kept": at_kept,
            "top1_at_kept_std": at_kept_std,
            "effective_rank": float(np.mean([effective_rank(bank_MD) for mine in banks for bank_MD in mine])),
            "stability": None if None in stable else float(np.mean([one.matched for one in stable])),
            "stability_any_two": None if None in stable else float(np.mean([one.any_two for one in stable])),
            "empty": mean_of(rows, "empty_concepts"), "bank_seconds": mean_of(rows, "bank_seconds"),
            "head_seconds": mean_of(rows, "seconds")}


def mean_of(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The mean of what the rows hold under this name; None where they hold nothing, as older ledgers do."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def accuracy_at(kept: int, counts: Sequence[int], accuracies: Sequence[float]) -> float:
    """Accuracy with `kept` concepts, linear in log k between the nearest ratios; NaN outside what was trained."""
    known = sorted((np.log(count), accuracy) for count, accuracy in zip(counts, accuracies, strict=True) if count > 0)
    return float(np.interp(np.log(kept), *zip(*known, strict=True), left=np.nan, right=np.nan))


def shown(line: dict[str, Any]) -> dict[str, str]:
    """A line as people read it."""
    def number(name: str, digits: int) -> str:
        return "-" if line[name] is None else plus_minus(line[name], line.get(f"{name}_std"), digits)

    beside = beside_shown(line)
    return {"data set": line["dataset"], "network": line["model"], "M": line["num_concepts"], "bank": line["bank"],
            "IIS": plus_minus(line["iis"], line["iis_std"]), "lift over Random": beside["lift over Random"] or "-",
            "area over log k": beside["area over log k"],
            "ANEC, %": percent(line["anec"], line["anec_std"]) + f" ({line['anec_levels']})" if line["anec"] is not None
            else "-", "NCC": number("ncc", 1), "effective rank": number("effective_rank", 1),
            "stability": number("stability", 2), "any two": number("stability_any_two", 2),
            "s, bank": number("bank_seconds", 2), "s, head": number("head_seconds", 2), "marks": line["marks"]}


# ---- ranks over networks ----


@dataclass
class Ranks:
    """Of one measure at one M: the banks, on how many networks they were compared, and what the test says."""

    dataset: str
    num_concepts: Any
    measure: str
    banks: list[str]
    networks: list[str]
    found: Friedman
    cd: float
    left_out: str

    @property
    def cliques(self) -> list[tuple[float, float]]:
        """The longest runs of banks whose mean ranks lie less than the critical difference apart: (from, to)."""
        ranks, spans = np.sort(self.found.mean_ranks), []
        for low in ranks:
            high = ranks[ranks < low + self.cd].max()
            if high > low and not any(start <= low and high <= stop for start, stop in spans):
                spans.append((float(low), float(high)))
        return spans


def write_ranks(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """which_bank_ranks and its figures, from the lines of the table."""
    ranks = list(ranks_of(lines))
    if not ranks:
        print("no ranks: they need two banks on the same two networks")
        return
    corrected, longer = holm([one.found.p for one in ranks]), []
    for one, p_holm in zip(ranks, corrected, strict=True):
        for bank, rank in zip(one.banks, one.found.mean_ranks, strict=True):
            longer.append({"dataset": one.dataset, "M": one.num_concepts, "measure": one.measure, "bank": bank,
                           "mean_rank": float(rank), "networks": len(one.networks), "banks": len(one.banks),
                           "chi2": one.found.chi2, "p": one.found.p, "p_holm": p_holm, "critical_difference": one.cd,
                           "left_out": one.left_out})
    names = list(dict.fromkeys(bank for one in ranks for bank in one.banks))
    people = [{"data set": one.dataset, "M": one.num_concepts, "measure": MEASURES[one.measure][0],
               "N": len(one.networks), "p": _p(one.found.p), "p, Holm": _p(p_holm), "CD": f"{one.cd:.2f}",
               **{name: f"{one.found.mean_ranks[one.banks.index(name)]:.2f}" if name in one.banks else "-"
                  for name in names}} for one, p_holm in zip(ranks, corrected, strict=True)]
    fewest = min(len(one.networks) for one in ranks)
    caution = "" if fewest >= FEW else (f"With {counted(fewest, 'network')} the test finds next to nothing: banks that "
                                        "it does not tell apart need not be alike. ")
    print(write_table(folder, "which_bank_ranks", longer, people, RANKS.format(caution)))
    for sentence in dict.fromkeys(one.left_out for one in ranks if one.left_out):
        print(f"left out of the ranks: {sentence}")
    for dataset, size in dict.fromkeys((one.dataset, one.num_concepts) for one in ranks):
        mine = [one for one in ranks if (one.dataset, one.num_concepts) == (dataset, size)]
        write_figure(folder, f"which_bank_{slug(dataset)}_M{slug(str(size))}", figure_of(mine))


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def ranks_of(lines: Sequence[dict[str, Any]]) -> Iterator[Ranks]:
    """The ranks of every data set, M and measure in which two banks have numbers on two networks. A network close to
    chance counts as one without numbers."""
    for dataset, size in dict.fromkeys((line["dataset"], line["num_concepts"]) for line in lines):
        mine = [line for line in lines if (line["dataset"], line["num_concepts"]) == (dataset, size)]
        networks, banks = (list(dict.fromkeys(line[key] for line in mine)) for key in ("model", "bank"))
        for measure in RANKED:
            values_NK = np.full((len(networks), len(banks)), np.nan)
            for line in mine:
                if line[measure] is not None and "close to chance" not in line["marks"]:
                    values_NK[networks.index(line["model"]), banks.index(line["bank"])] = line[measure]
            rows, columns = complete(values_NK)
            if len(rows) < 2 or len(columns) < 2:
                continue
            gone = [*(f"network {name}" for n, name in enumerate(networks) if n not in rows),
                    *(f"bank {name}" for k, name in enumerate(banks) if k not in columns)]
            what = f"{dataset}, M = {size}, {MEASURES[measure][0]}: {', '.join(gone)}" if gone else ""
            yield Ranks(dataset, size, measure, [banks[k] for k in columns], [networks[n] for n in rows],
                        friedman(values_NK[np.ix_(rows, columns)], MEASURES[measure][1] > 0),
                        critical_difference(len(columns), len(rows)), what)


def complete(values_NK: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows and columns without NaN: what lacks the largest share of its values goes first, of equals a column, because
    networks are what the test counts."""
    rows, columns = (list(range(count)) for count in values_NK.shape)
    while (gone := np.isnan(values_NK[np.ix_(rows, columns)])).any():
        of_rows, of_columns = gone.mean(1), gone.mean(0)
        if of_columns.max() >= of_rows.max():
            del columns[int(of_columns.argmax())]
        else:
            del rows[int(of_rows.argmax())]
    return (rows, columns) if rows and columns else ([], [])


def figure_of(ranks: Sequence[Ranks]) -> Any:
    """Critical-difference diagrams, a panel per measure: banks on an axis of mean rank, best on the left; a bar joins
    those not told apart."""
    figure, axes = panels(len(ranks), f"{ranks[0].dataset}, M = {ranks[0].num_concepts}: mean rank of each bank", 4.2,
                          1.4 + 0.22 * max(len(one.banks) for one in ranks))
    for one, place in zip(axes, ranks, strict=True):
        order = np.argsort(place.found.mean_ranks, kind="stable")
        ranks_K, rows_K = place.found.mean_ranks[order], -np.arange(1, len(order) + 1)
        one.plot(ranks_K, rows_K, "o", color="black", markersize=4.5)
        for height, span in enumerate(place.cliques, start=1):
            one.plot(span, [0.55 * height] * 2, color="C3", linewidth=3, solid_capstyle="butt")
            one.vlines(span, rows_K[-1], 0.55 * height, color="C3", linewidth=0.6, linestyle=":")
        one.axhline(0, color="black", linewidth=0.8)
        one.set(xlim=(0.8, len(order) + 0.2), xticks=range(1, len(order) + 1), xlabel="mean rank",
                ylim=(rows_K[-1] - 0.6, 0.55 * max(1, len(place.cliques)) + 0.5))
        one.set_yticks(rows_K, [place.banks[k] for k in order], fontsize=7)
        one.set_title(f"{MEASURES[place.measure][0]}: N = {len(place.networks)}, CD = {place.cd:.2f}, "
                      f"p = {_p(place.found.p)}", fontsize=8)
    return figure


if __name__ == "__main__":
    run_script(main, Settings)
