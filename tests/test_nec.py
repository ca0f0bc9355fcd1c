"""Accuracy at NEC: pruning and the choice from the path by hand and by a plain loop; the script on a real small run."""

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
from IP_training.elastic_net import Fit
from reproduction import accuracy_at_nec, bank_table
from reproduction.lib.nec import accuracy_at_levels, at_levels, lams_from, over_seeds, prune
from reproduction.lib.runs import Source, find_runs


def fit(*rows):
    """A Fit with these weights, the bias 0."""
    W = torch.tensor(rows)
    return Fit(W, torch.zeros(len(W)), 0.0, 1, True)


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


def test_the_sparsest_solution_with_enough_weights_is_taken():
    sparse, middle, dense = fit([1.0, 0, 0], [0, 0, 0]), fit([1.0, 2, 0], [3, 0, 0]), fit([1.0, 2, 3], [4, 5, 0])
    read = []
    path = ((lam, read.append(lam) or one) for lam, one in ((0.3, sparse), (0.2, middle), (0.1, dense), (0.05, dense)))
    layers = at_levels(path, (1, 2, 4))
    assert (layers[1].lam, layers[1].nonzero, layers[1].W_CM.tolist()) == (0.2, 3, [[0, 2, 0], [3, 0, 0]])
    assert (layers[2].lam, layers[2].W_CM.tolist()) == (0.1, [[0, 2, 3], [4, 5, 0]])
    assert layers[4] is None  # M = 3
    assert read == [0.3, 0.2, 0.1]  # no further than needed
    layers = at_levels([(0.2, sparse), (0.1, middle)], (1, 3))  # too sparse: the densest solution, unpruned
    assert layers[1].W_CM.tolist() == [[0, 2, 0], [3, 0, 0]]
    assert layers[3].nonzero == 3 and layers[3].W_CM.tolist() == [[1, 2, 0], [3, 0, 0]]


def test_lams_and_means_over_seeds_by_hand():
    assert lams_from(1.0, 3, 1e-3) == pytest.approx([0.1, 0.01, 0.001])
    lines = over_seeds([[{"nec": 5, "top1": 0.5, "used": 5}, {"nec": 10, "top1": 0.7, "used": 8}],
                        [{"nec": 5, "top1": 0.7, "used": 5}, {"nec": 10, "top1": 0.9, "used": 9}]])
    assert [(line["nec"], line["top1"], line["used"]) for line in lines] == [
        (5, pytest.approx(0.6), 5), (10, pytest.approx(0.8), 8.5), ("ANEC", pytest.approx(0.7), None)]
    assert lines[2]["top1_std"] == pytest.approx(0.2 / 2 ** 0.5)
    one = over_seeds([[{"nec": 5, "top1": 0.5, "used": 5}, {"nec": 10, "top1": None, "used": None}]])
    assert [line["top1"] for line in one] == [0.5, None, None]


def test_one_direction_per_class_is_enough():
    """A bank of the class directions and noise: with one weight per class (of 4 + 8) all images are right."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 4
    x = torch.cat([3 * torch.nn.functional.one_hot(y, 4).float(), torch.randn(400, 8, generator=generator)], 1)
    x = x + 0.1 * torch.randn(400, 12, generator=generator)
    lines = accuracy_at_levels((x[:300], y[:300]), (x[300:], y[300:]), torch.eye(12), 4, (1, 30))
    assert lines[0]["top1"] > 0.98 and lines[0]["used"] == 1
    assert lines[1] == {"nec": 30, "top1": None, "used": None, "lam": None, "nonzero": None}


def test_script(toy, monkeypatch, capsys):
    folder = trained(IP_Prototype_training, toy, seeds=2, num_concepts=12)
    measure = lambda: call(accuracy_at_nec, "--model_root", folder, "--device", "cpu")  # noqa: E731
    measure()
    lines = rows_of(folder / "nec.csv")  # without --save_dir: beside the run
    assert [line["nec"] for line in lines] == ["5", "10", "15", "20", "25", "30", "ANEC"]
    assert lines[2]["top1"] == "" == lines[-1]["top1"]  # 15 of M = 12
    known, = find_runs(Source(model_root=[folder]))
    assert {line["marks"] for line in lines} == {"; ".join(known.marks)}
    assert all((folder / name).stat().st_size for name in ("nec.tex", "nec_toy.png", "nec_toy.pdf"))
    # The kept line, from the run's files alone.
    bank = load_file(folder / "predictors" / "seed_1.safetensors")["bank"]
    pairs = [(split.features_ND, split.labels_N) for split in (clusters(300, "train"), clusters(200, "val"))]
    kept = json.loads((folder / "nec.json").read_text())
    assert kept["1"]["levels"] == accuracy_at_levels(*pairs, bank, 4)
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
    monkeypatch.setattr("reproduction.lib.nec.elastic_net_path", lambda *_: fitted.append(1) or iter(()))
    measure()
    assert not fitted
    del kept["0"]
    (folder / "nec.json").write_text(json.dumps(kept))
    measure()
    assert fitted == [1]


def test_bad_input(toy):
    folder = trained(IP_Prototype_training, toy, num_concepts=8)
    save_embeddings(toy / "train.pt", clusters(300, "train", seed=3))
    with pytest.raises(UserError, match="holds other numbers"):
        call(accuracy_at_nec, "--model_root", folder, "--device", "cpu")
    (toy / "train.pt").unlink()
    with pytest.raises(UserError, match="there is no file"):
        call(accuracy_at_nec, "--model_root", folder, "--device", "cpu")


def test_all_banks_of_one_data_set(toy, capsys):
    """A data set whose name begins the same is not among them; sizes and epochs that differ are in the title."""
    models = toy / "IP_Prototype" / "net"
    for name, changes in (("toy_a", {}), ("toy_b", {"n_epoch": 3}), ("toy_c", {"dataset": "toy_painted"})):
        trained(IP_Prototype_training, toy, f"IP_Prototype/net/{name}", num_concepts=8, **changes)
    call(bank_table, "--dataset", "toy", "--root", toy, "--kept", 4, "--save_dir", toy / "out")
    lines = rows_of(toy / "out" / "banks.csv")
    assert {line["title"] for line in lines} == {"Prototype, 2 epochs", "Prototype, 3 epochs"} and len(lines) == 2
    assert "| Prototype, 3 epochs |" in capsys.readouterr().out
    bank = load_file(models / "toy_a" / "predictors" / "seed_0.safetensors")["bank"].numpy()
    assert float(lines[0]["effective_rank"]) == pytest.approx(bank_table.effective_rank(bank), rel=1e-5)
    with pytest.raises(UserError, match="no ledger of toys below"):
        call(bank_table, "--dataset", "toys", "--root", toy, "--save_dir", toy / "out")
