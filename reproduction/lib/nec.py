"""Accuracy at NEC (VLG-CBM's measure): how good a linear layer is that may use few concepts per class.

    NEC = ‖W‖₀ / C          ANEC = the mean accuracy over NEC = 5, 10, 15, 20, 25, 30, as far as they are reached

A level's layer is the elastic-net solution at the largest λ with at least NEC · C non-zero weights, pruned of the few
too many. λ falls geometrically until a solution has enough weights; then the interval between the two λ around the
level is cut until they are within a factor of `nearest`, and λ a little above are tried too. Taking any λ with as many
weights would not do: while they stay as many, accuracy moves by up to a point. Every solution on the way is solved to
`tolerance`; a level whose solution is not is not reached, and neither is one beyond the path's end. The bias stays as
it was fitted (as in VLG-CBM's own evaluation). Validation images choose no layer here. They chose two kinds of banks,
unless stage 3 had --holdout: End2End's is that of the selected head, and a Text bank holds the words that passed on
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from iis.statistics import mean_std
from IP_training.elastic_net import ElasticNet, Fit
from IP_training.encoder import Encoder, as_encoder
from IP_training.predictor import interpret, interpret_train
from reproduction.lib.runs import Run

LEVELS = (5, 10, 15, 20, 25, 30)
# step: from one λ to the next before a level is bracketed; last: λ, a share of the smallest at which W is 0; scan:
# ratio of the λ tried above a level of fewer than `scan_below` weights, up to `above` times its own; nearest: ratio of
# the two λ around a level; surplus: weights too many that end the search, a share of the level; tolerance: of the
# optimality conditions, a share of the penalty, and `rough` where only the count is looked at; passes: over the data,
# for one λ, at most. docs/fidelity.md says how "vlg" differs from VLG-CBM's code.
PATHS: dict[str, dict[str, Any]] = {
    "refined": {"step": 0.6, "last": 1e-5, "above": 1.3, "scan": 1.02, "scan_below": 1000,
                "nearest": 1.005, "surplus": 0.005, "tolerance": 1e-3, "rough": 0.02, "passes": 3000, "alpha": 0.99},
    # VLG-CBM: 150 λ from 0.1 / alpha down to its 2^-15; the first solution with enough weights above 1e-5.
    "vlg": {"first_lam": 0.1 / 0.99, "lams": 150, "last": 2.0**-15, "least_weight": 1e-5, "tolerance": 1e-3,
            "passes": 3000, "alpha": 0.99}}


class Layer(NamedTuple):
    """W_CM (C, M) with exactly NEC · C non-zero weights, b_C (C,), the lam it was fitted with, ‖W‖₀ before pruning, and
    the passes that its solution took."""

    W_CM: torch.Tensor
    b_C: torch.Tensor
    lam: float
    nonzero: int
    passes: int


class _Solved(NamedTuple):
    lam: float
    fit: Fit
    nonzero: int
    tolerance: float


def cache_name(path: str = "refined") -> str:
    """The file beside a ledger, written by reproduction/accuracy_at_nec.py: {seed: {"depends", "levels"}}."""
    return "nec.json" if path == "refined" else f"nec_{path}.json"


def prune(W_CM: torch.Tensor, keep: int) -> torch.Tensor:
    """W with exactly its `keep` largest |entries|, the others 0; among equals the first in reading order stays.

    Raises `ValueError` where fewer than `keep` are non-zero.
    """
    flat = W_CM.flatten()
    if int((flat != 0).sum()) < keep:
        raise ValueError(f"W has {int((flat != 0).sum())} non-zero weights; {keep} cannot be kept")
    chosen = flat.abs().sort(descending=True, stable=True).indices[:keep]
    return torch.zeros_like(flat).index_copy_(0, chosen, flat[chosen]).view_as(W_CM)


def at_levels(problem: ElasticNet, levels: Sequence[int] = LEVELS,
              path: dict[str, Any] | None = None) -> dict[int, Layer | str]:
    """The layer of every level, or a sentence that says why there is none. path: one of `PATHS` (default: refined)."""
    path = path or PATHS["refined"]
    concepts, classes = problem.x_NM.shape[1], problem.num_classes
    walk, found = _Walk(problem, path), {}
    for level in sorted(levels):
        if level > concepts:
            found[level] = f"NEC is more than M = {concepts}"
            continue
        try:
            solved = walk.reach(level * classes)
        except _NotReached as error:
            found[level] = str(error)
            continue
        found[level] = Layer(prune(solved.fit.W_CM, level * classes), solved.fit.b_C, solved.lam, solved.nonzero,
                             solved.fit.passes)
    return {level: found[level] for level in levels}


class _NotReached(Exception):
    pass


class _Walk:
    """The solutions of one problem so far, from sparse to dense."""

    def __init__(self, problem: ElasticNet, path: dict[str, Any]) -> None:
        self.problem, self.path, largest = problem, path, problem.largest_lam()
        if "lams" in path:
            first, count = path["first_lam"], path["lams"] - 1
            self.lams = [first * path["last"] ** (at / count) for at in range(count + 1)]
        else:
            count = math.ceil(math.log(path["last"]) / math.log(path["step"]))
            self.lams = [largest * max(path["step"] ** at, path["last"]) for at in range(1, count + 1)]
        self.solved = [_Solved(largest, problem.solve(largest, n_iters=1), 0, 0.0)]  # W = 0
        self.ended: str | None = None

    def reach(self, weights: int) -> _Solved:
        """The solution at the largest λ with at least so many weights, as nearly as the path asks for."""
        few = weights < self.path.get("scan_below", math.inf)
        while self.solved[-1].nonzero < weights:
            self._extend(self.path["tolerance" if few else "rough"])
        if "nearest" in self.path and few:
            dense = self._cut(weights, self.path["scan"])
            # The count may have been as large before and fallen again.
            lam = min(dense.lam * self.path["above"], self.solved[0].lam)
            while (lam := lam / self.path["scan"]) > dense.lam:
                if self._insert(lam, self.path["tolerance"]).nonzero >= weights:
                    break
            self._cut(weights, self.path["nearest"])
        elif "nearest" in self.path:
            self._cut(weights, self.path["nearest"], self.path["surplus"])
        return self._around(weights)[1]

    def _around(self, weights: int) -> tuple[_Solved, _Solved]:
        """The two neighbours between which a solution first has so many weights."""
        while True:
            at = next((at for at, one in enumerate(self.solved) if one.nonzero >= weights), None)
            if at is not None:
                return self.solved[at - 1], self.solved[at]
            self._extend(self.path["tolerance"])  # a rough solution had more weights

    def _cut(self, weights: int, ratio: float, surplus: float = 0) -> _Solved:
        """Solve between the two until they are within this ratio, or, with a surplus, the denser has at most this share
        of weights too many; the denser one, solved to the tolerance."""
        while True:
            sparse, dense = self._around(weights)
            near = sparse.lam <= dense.lam * ratio or dense.nonzero <= weights * (1 + surplus) and surplus > 0
            if near and dense.tolerance <= self.path["tolerance"]:
                return dense
            if near:
                self._insert(dense.lam, self.path["tolerance"])
                continue
            # Where the last weight would come in if weights came evenly in log λ; not close to an end.
            wanted = weights * (1 + surplus / 2) - 0.5
            share = min(max((wanted - sparse.nonzero) / (dense.nonzero - sparse.nonzero), 0.1), 0.9)
            rough = surplus > 0 and dense.nonzero > sparse.nonzero + 0.1 * weights
            self._insert(sparse.lam ** (1 - share) * dense.lam**share, self.path["rough" if rough else "tolerance"])

    def _insert(self, lam: float, tolerance: float) -> _Solved:
        """Solve at λ, between two that are solved: from the nearer in log λ."""
        at = next(at for at, one in enumerate(self.solved) if one.lam <= lam)
        sparse, dense = self.solved[at - 1], self.solved[at]
        if dense.lam < lam:
            nearer = sparse if sparse.lam / lam < lam / dense.lam else dense
            self.solved.insert(at, self._solve(lam, nearer, tolerance))
        elif dense.tolerance > tolerance:
            self.solved[at] = self._solve(lam, dense, tolerance)
        return self.solved[at]

    def _extend(self, tolerance: float) -> None:
        last = self.solved[-1]
        if self.ended is None and not self.lams:
            self.ended = f"the path ends at λ = {last.lam:.3g} with {self._a_class(last)} weights a class"
        if self.ended is not None:
            raise _NotReached(self.ended)
        try:
            self.solved.append(self._solve(self.lams.pop(0), last, tolerance))
        except _NotReached as error:
            self.ended = str(error)
            raise

    def _solve(self, lam: float, start: _Solved, tolerance: float) -> _Solved:
        fit = self.problem.solve(lam, start.fit, self.path["passes"], tolerance)
        nonzero = int((fit.W_CM.abs() > self.path.get("least_weight", 0)).sum())
        solved = _Solved(lam, fit, nonzero, tolerance)
        if not fit.converged:
            raise _NotReached(f"not solved at λ = {lam:.3g} after {fit.passes} passes, with {self._a_class(solved)} "
                              "weights a class")
        return solved

    def _a_class(self, solved: _Solved) -> str:
        return f"{solved.nonzero / self.problem.num_classes:.1f}"


def accuracy_at_levels(train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor],
                       bank: Encoder | torch.Tensor, num_classes: int, levels: Sequence[int] = LEVELS,
                       path: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Fit on train = (features (N, D), labels (N,)), measure on val; one line per level: {"nec", "top1" (fraction),
    "lam", "nonzero": ‖W‖₀ before pruning, "passes", "converged", "reason"}. Where a level is not reached "reason" says
    why and "top1" is None; it is "" elsewhere.

    bank: its encoder, or vectors (M, D) to project on. Activations of every bank are standardised on train, because one
    lam treats all concepts alike.
    """
    device, path = as_encoder(bank).weight_MD.device, path or PATHS["refined"]
    normaliser, x_NM = interpret_train([("standard", len(bank))], train[0], bank)
    x_VM = interpret(val[0], bank, normaliser)
    problem, y_V, lines = ElasticNet(x_NM, train[1].to(device), num_classes, path["alpha"]), val[1].to(device), []
    for level, layer in at_levels(problem, levels, path).items():
        if isinstance(layer, str):
            lines.append({"nec": level, "top1": None, "lam": None, "nonzero": None, "passes": None, "converged": False,
                          "reason": layer})
            continue
        right = (x_VM @ layer.W_CM.T + layer.b_C).argmax(1) == y_V
        lines.append({"nec": level, "top1": float(right.double().mean()), "lam": layer.lam, "nonzero": layer.nonzero,
                      "passes": layer.passes, "converged": True, "reason": ""})
    return lines


Seeds = Sequence[Sequence[dict[str, Any]]]  # for each seed the lines of `accuracy_at_levels`


def rows_of(run: Run) -> tuple[str, int]:
    """Runs that agree in this stand beside each other: the data set and how many concepts a level may choose from."""
    return run.dataset, run.summary["num_concepts"]


def reached_by_all(rows: Iterable[Seeds]) -> list[int]:
    """The levels that every seed of every row has reached: those a mean over levels may take for comparison."""
    lines = [line for seeds in rows for of_seed in seeds for line in of_seed]
    missing = {line["nec"] for line in lines if line["top1"] is None}
    return sorted({line["nec"] for line in lines} - missing)


def span(levels: Sequence[int]) -> str:
    """[5, 10, 15] as "5 to 15"; where one of `LEVELS` between is missing, all of them: "5, 15"."""
    whole = [level for level in LEVELS if levels and levels[0] <= level <= levels[-1]]
    if len(levels) > 1 and list(levels) == whole:
        return f"{levels[0]} to {levels[-1]}"
    return ", ".join(map(str, levels))


def over_seeds(seeds: Seeds, of_mean: Sequence[int]) -> list[dict[str, Any]]:
    """A line per level and one for ANEC over the levels `of_mean`: {"nec", "top1", "top1_std": mean and std over seeds,
    fractions; "reason": why a seed did not reach the level; "levels": of the mean, in words}. None where a seed has no
    number, or `of_mean` is empty."""
    lines = []
    for at in zip(*seeds, strict=True):
        mean, std = _spread([line["top1"] for line in at])
        reasons = [f"seed {seed}: {line['reason']}" for seed, line in enumerate(at) if line["top1"] is None]
        lines.append({"nec": at[0]["nec"], "top1": mean, "top1_std": std, "reason": "; ".join(reasons), "levels": ""})
    taken = [[line["top1"] for line in of_seed if line["nec"] in of_mean] for of_seed in seeds]
    mean, std = _spread([_spread(values)[0] for values in taken])
    return [*lines, {"nec": "ANEC", "top1": mean, "top1_std": std, "levels": span(of_mean),
                     "reason": "" if of_mean else "no level is reached by all rows"}]


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    return (None, None) if None in values or not values else mean_std(values)
