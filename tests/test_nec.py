"""Accuracy at NEC: pruning by hand and by a plain loop, levels against a dense grid of λ, the script on a small run."""

import json

import pytest
import torch
from conftest import clusters
from made_sweep import call, rows_of, trained
from safetensors.torch import load_file

from iis import processes
from iis.embedding_file import save_embeddings
from iis.runtime import UserError
from IP_training import IP_Prototype_training
from IP_training.elastic_net import ElasticNet, Fit
from reproduction import accuracy_at_nec
from reproduction.lib.nec import PATHS, accuracy_at_levels, at_levels, over_seeds, prune, reached_by_all, span
from reproduction.lib.runs import Source, find_runs

REFINED = PATHS["refined"]


class Counted:
    """A problem of two classes and ten concepts whose solution at λ has count(λ) weights; it notes the λ asked for,
    and how well."""

    def __init__(self, count, solved_from=0.0, classes=2):
        self.count, self.solved_from, self.asked, self.tolerances = count, solved_from, [], []
        self.x_NM, self.num_classes = torch.zeros(1, 10), classes

    def largest_lam(self):
        return 1.0

    def solve(self, lam, start=None, n_iters=1000, tolerance=0.01):
        self.asked.append(lam)
        self.tolerances.append(tolerance)
        W = torch.zeros(10 * self.num_classes)
        W[:self.count(lam)] = torch.arange(1.0, self.count(lam) + 1)
        return Fit(W.view(-1, 10), torch.zeros(self.num_classes), 0.0, 7, lam >= self.solved_from)


def correlated(seed=0):
    """Train and validation of 5 classes in 30 dimensions, and a bank of 40 directions there: correlated columns."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 30, generator=generator)

    def images(count):
        y = torch.arange(count) % 5
        return centres[y] + 2.5 * torch.randn(count, 30, generator=generator), y
    bank = torch.nn.functional.normalize(torch.randn(40, 30, generator=generator), dim=1)
    return images(400), images(2000), bank


def test_prune_by_hand_and_by_a_plain_loop():
    W = torch.tensor([[0.5, -3.0, 0.0], [2.0, -0.5, 0.1]])
    assert prune(W, 2).tolist() == [[0, -3, 0], [2, 0, 0]]
    assert prune(W, 3).tolist() == [[0.5, -3, 0], [2, 0, 0]]  # 0.5 and −0.5 tie: the first stays
    assert torch.equal(prune(W, 5), W)
    with pytest.raises(ValueError, match="5 non-zero"):
        prune(W, 6)
    W = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    for keep in (1, 13, 30):
        order = sorted(range(77), key=lambda i: (-abs(float(W.flatten()[i])), i))
        expected = [float(W.flatten()[i]) if i in order[:keep] else 0.0 for i in range(77)]
        assert prune(W, keep).flatten().tolist() == expected


def test_a_level_is_at_the_largest_lam_with_enough_weights():
    """count = 1 / λ: NEC 2 of two classes is 4 weights, which come in at λ = 1/4; λ is found within 0.5 %."""
    problem = Counted(lambda lam: min(20, int(1 / lam + 1e-9)))
    layers = at_levels(problem, (5, 2))
    assert list(layers) == [5, 2]
    for level in (2, 5):
        assert 0.995 / (2 * level) <= layers[level].lam <= 1 / (2 * level)
        assert (layers[level].nonzero, layers[level].passes) == (2 * level, 7)
        assert int((layers[level].W_CM != 0).sum()) == 2 * level
    assert len(problem.asked) < 60
    # Four weights at λ = 0.3, fewer from 0.29 to 0.25: the first time counts.
    early = at_levels(Counted(lambda lam: 4 if lam <= 0.25 or 0.29 <= lam <= 0.3 else 3 if lam < 0.29 else 2), (2,))[2]
    assert 0.298 <= early.lam <= 0.3
    # Four come in at once, at λ = 1/2: the largest of them stay.
    jump = at_levels(Counted(lambda lam: 6 if lam <= 0.5 else 2), (2,))[2]
    assert jump.nonzero == 6 and jump.W_CM.tolist() == [[0, 0, 3, 4, 5, 6, 0, 0, 0, 0], [0] * 10]


def test_a_level_of_many_weights_is_met_within_half_a_percent_by_few_solutions():
    """count = 10 / λ, 1000 classes: NEC 5 is 5000 weights at λ = 0.002. No scan; rough away from the level alone."""
    problem = Counted(lambda lam: min(10_000, int(10 / lam)), classes=1000)
    layers = at_levels(problem, (2, 5))
    for level, layer in layers.items():
        weights = 1000 * level
        assert weights <= layer.nonzero <= 1.005 * weights and int((layer.W_CM != 0).sum()) == weights
        assert problem.tolerances[problem.asked.index(layer.lam)] in (REFINED["rough"], REFINED["tolerance"])
        assert problem.tolerances[len(problem.asked) - 1 - problem.asked[::-1].index(layer.lam)] == REFINED["tolerance"]
    assert len(problem.asked) <= 30 and problem.tolerances.count(REFINED["rough"]) >= 10
    # A rough solution with too many weights, as none of those solved well has: the walk goes on.
    problem = Counted(lambda lam: 5100 if problem.tolerances[-1] > 0.01 and lam < 0.5 else min(10_000, int(10 / lam)),
                      classes=1000)
    assert 5000 <= at_levels(problem, (5,))[5].nonzero <= 5025


def test_a_level_that_is_not_reached_has_a_reason_and_no_layer():
    """Not the last solution: a path's end, a solution that is not solved, and M are three reasons."""
    ended = at_levels(Counted(lambda lam: 5 if lam < 0.5 else 1), (2, 5, 11))
    assert ended[2].nonzero == 5 and "2.5 weights a class" in ended[5] and "1e-05" in ended[5] and "M = 10" in ended[11]
    unsolved = at_levels(Counted(lambda lam: min(20, int(1 / lam)), solved_from=0.15), (2, 4))
    assert unsolved[2].nonzero == 4 and "not solved at" in unsolved[4] and "7 passes" in unsolved[4]


def test_vlg_takes_the_first_of_its_own_lams_with_enough_weights():
    """λ from 0.1/0.99 down to its 2^-15 in 150 steps; a weight up to 1e-5 is none."""
    problem = Counted(lambda lam: min(20, int(0.1 / lam)))
    layer = at_levels(problem, (1,), PATHS["vlg"])[1]
    asked = problem.asked[1:]  # the first is W = 0
    grid = [0.1 / 0.99 * 2 ** (-15 * at / 149) for at in range(len(asked))]
    assert asked == pytest.approx(grid) and asked[-1] == layer.lam
    assert 0.1 / asked[-1] >= 2 > 0.1 / asked[-2]
    problem.solve = lambda *_, **__: Fit(torch.full((2, 10), 1e-5), torch.zeros(2), 0.0, 1, True)
    assert "0.0 weights a class" in at_levels(problem, (1,), PATHS["vlg"])[1]


def test_numbers_do_not_depend_on_step_and_tolerance():
    """Half the step (of the walk, and between the two λ around a level) and a tenth of the tolerance move no accuracy
    by more than 0.3 points; and a level's solution is the one that a dense grid of λ finds."""
    train, val, bank = correlated()
    levels = (2, 5, 10)
    results = [accuracy_at_levels(train, val, bank, 5, levels, {**REFINED, **changes}) for changes in (
        {}, {name: REFINED[name] ** 0.5 for name in ("step", "scan", "nearest")},
        {"tolerance": REFINED["tolerance"] / 10})]
    for lines in zip(*results, strict=True):
        top1 = [line["top1"] for line in lines]
        assert None not in top1 and max(top1) - min(top1) <= 0.003, lines
        assert all(line["converged"] and line["nec"] * 5 <= line["nonzero"] <= line["nec"] * 5 + 2 for line in lines)
    x = train[0] @ bank.T
    problem = ElasticNet((x - x.mean(0)) / x.std(0), train[1], 5)
    for line in results[0][:2]:
        fit = None
        for at in range(40, -1, -1):  # down to this λ from 20 % above it
            fit = problem.solve(line["lam"] * 1.2 ** (at / 40), fit, tolerance=1e-4)
            if int((fit.W_CM != 0).sum()) >= 5 * line["nec"]:
                break
        assert at <= 2  # within 1 %


def test_means_over_seeds_and_levels_by_hand():
    def seed(*top1):
        return [{"nec": nec, "top1": value, "reason": "" if value else "why"}
                for nec, value in zip((5, 10, 15), top1, strict=True)]
    rows = [[seed(0.5, 0.7, 0.9), seed(0.7, 0.9, 0.9)], [seed(0.4, 0.6, None), seed(0.4, 0.6, 0.8)]]
    assert reached_by_all(rows) == [5, 10] and reached_by_all(rows[:1]) == [5, 10, 15]
    lines = over_seeds(rows[0], [5, 10])
    assert [(line["nec"], line["top1"]) for line in lines] == [
        (5, pytest.approx(0.6)), (10, pytest.approx(0.8)), (15, pytest.approx(0.9)), ("ANEC", pytest.approx(0.7))]
    assert lines[3]["top1_std"] == pytest.approx(0.2 / 2 ** 0.5) and lines[3]["levels"] == "5 to 10"
    lines = over_seeds(rows[1], [5, 10])
    assert [line["top1"] for line in lines] == [0.4, 0.6, None, 0.5] and lines[2]["reason"] == "seed 0: why"
    assert over_seeds(rows[1], [])[-1]["top1"] is None
    assert [span(levels) for levels in ([5, 10, 15], [5, 15], [5], [])] == ["5 to 15", "5, 15", "5", ""]


def test_one_direction_per_class_is_enough():
    """A bank of the class directions and noise: with one weight per class (of 4 + 8) all images are right."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 4
    x = torch.cat([3 * torch.nn.functional.one_hot(y, 4).float(), torch.randn(400, 8, generator=generator)], 1)
    x = x + 0.1 * torch.randn(400, 12, generator=generator)
    lines = accuracy_at_levels((x[:300], y[:300]), (x[300:], y[300:]), torch.eye(12), 4, (1, 30))
    assert lines[0]["top1"] > 0.98 and lines[0]["converged"] and lines[0]["nonzero"] >= 4
    assert lines[1]["top1"] is None and lines[1]["converged"] is False and "M = 12" in lines[1]["reason"]


def test_script(toy, monkeypatch, capsys):
    monkeypatch.setattr("reproduction.lib.nec.LEVELS", (2, 4, 15))  # the classes lie too far apart for more
    folder = trained(IP_Prototype_training, toy, seeds=2, num_concepts=12, learning_rates=0.1)
    measure = lambda: call(accuracy_at_nec, "--model_root", folder, "--device", "cpu")  # noqa: E731
    measure()
    lines = rows_of(folder / "nec.csv")  # without --save_dir: beside the run
    assert [line["nec"] for line in lines] == ["2", "4", "15", "ANEC"]
    assert [bool(line["top1"]) for line in lines] == [True, True, False, True]  # M = 12
    assert lines[-1]["levels"] == "2 to 4" and "M = 12" in lines[2]["reason"]
    assert "not reached: Prototype, toy, NEC 15" in capsys.readouterr().out
    known, = find_runs(Source(model_root=[folder]))
    assert {line["marks"] for line in lines} == {"; ".join(known.marks)}
    assert all((folder / name).stat().st_size for name in ("nec.tex", "nec_toy.png", "nec_toy.pdf"))
    for name in ("curves", "write_figure"):  # drawn once is enough
        monkeypatch.setattr(accuracy_at_nec, name, lambda *_: None)
    # The kept line, from the run's files alone.
    bank = load_file(folder / "predictors" / "seed_1.safetensors")["bank"]
    pairs = [(split.features_ND, split.labels_N) for split in (clusters(300, "train"), clusters(200, "val"))]
    kept = json.loads((folder / "nec.json").read_text())
    assert kept["1"]["levels"] == accuracy_at_levels(*pairs, bank, 4, (2, 4, 15))
    top1 = [kept[seed]["levels"][0]["top1"] for seed in ("0", "1")]
    assert float(lines[0]["top1"]) == pytest.approx(sum(top1) / 2) and float(lines[0]["top1"]) > 0.5
    # Two processes give what one gives.
    for cores in (2, 1):
        monkeypatch.setattr(processes, "available_cores", lambda cores=cores: cores)
        (folder / "nec.json").unlink()
        measure()
        assert json.loads((folder / "nec.json").read_text()) == kept
    # Nothing is fitted again, but for a seed whose entry is gone (as after a kill).
    fitted = []
    monkeypatch.setattr(processes, "available_cores", lambda: 1)  # in this process, which counts
    own = accuracy_at_levels
    monkeypatch.setattr("reproduction.lib.nec.accuracy_at_levels", lambda *args: fitted.append(1) or own(*args))
    measure()
    assert not fitted
    del kept["0"]
    (folder / "nec.json").write_text(json.dumps(kept))
    measure()
    assert fitted == [1]
    # A file of another path, as older ones are, is not believed; VLG-CBM's path has files of its own.
    kept = json.loads((folder / "nec.json").read_text())
    kept["1"]["depends"]["path"] = {"lams": 16, "floor": 1e-3, "tolerance": 0.1, "passes": 60, "alpha": 0.99}
    (folder / "nec.json").write_text(json.dumps(kept))
    measure()
    assert fitted == [1, 1] and json.loads((folder / "nec.json").read_text())["1"]["depends"]["path"] == REFINED
    call(accuracy_at_nec, "--model_root", folder, "--device", "cpu", "--seeds", "1")
    lines = rows_of(folder / "nec.csv")
    assert {line["seeds"] for line in lines} == {"1"} and not fitted[2:]
    assert float(lines[0]["top1"]) == pytest.approx(top1[0]) and "over 1 seed:" in (folder / "nec.md").read_text()
    call(accuracy_at_nec, "--model_root", folder, "--device", "cpu", "--path", "vlg")
    assert len(fitted) == 4 and (folder / "nec_vlg.json").exists() and len(rows_of(folder / "nec_vlg.csv")) == 4


def test_bad_input(toy):
    folder = trained(IP_Prototype_training, toy, num_concepts=8, learning_rates=0.1)
    save_embeddings(toy / "train.pt", clusters(300, "train", seed=3))
    with pytest.raises(UserError, match="holds other numbers"):
        call(accuracy_at_nec, "--model_root", folder, "--device", "cpu")
    (toy / "train.pt").unlink()
    with pytest.raises(UserError, match="there is no file"):
        call(accuracy_at_nec, "--model_root", folder, "--device", "cpu")
