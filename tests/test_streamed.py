"""Features read from their file batch by batch train the same heads as resident ones, bit for bit."""

import pytest
import torch
from bank_runs import ledger, own_caches, run  # noqa: F401 - a fixture

from iis.embedding_file import load_embeddings, save_embeddings
from IP_training import IP_Bank_training, IP_End2End_training, training_run
from IP_training.streamed import Streamed, free_bytes, gathered, resident_or_streamed

CPU = torch.device("cpu")
CLOCK = ("seconds", "date", "host")


def test_rows_come_as_from_a_tensor():
    half = torch.randn(10, 3).half()
    streamed, whole, rows = Streamed(half, CPU), half.float(), torch.tensor([7, 0, 7, 9])
    out = streamed.new_empty(4, 3)
    assert out.dtype == torch.float32
    assert torch.equal(gathered(streamed, rows, out), whole[rows])
    assert torch.equal(gathered(whole, rows, torch.empty(4, 3)), whole[rows])
    assert [part.tolist() for part in streamed.split(4)] == [part.tolist() for part in whole.split(4)]
    some = streamed[torch.tensor([1, 3, 5])]
    assert len(some) == 3 and some.shape == (3, 3)
    assert torch.equal(torch.cat(list(some.split(2))), whole[[1, 3, 5]])
    assert torch.equal(some.gather(torch.tensor([2, 0]), torch.empty(2, 3)), whole[[5, 1]])


def test_streamed_only_where_there_is_no_room(capsys):
    matrices = [torch.zeros(1024, 1024).half(), torch.zeros(1024, 1024).half()]  # 8 MiB as float32
    kept = resident_or_streamed(matrices, CPU, 8 / 1024)
    assert all(torch.is_tensor(matrix) and matrix.dtype == torch.float32 for matrix in kept)
    assert all(torch.is_tensor(matrix) for matrix in resident_or_streamed(matrices, CPU))
    assert not capsys.readouterr().out and free_bytes(CPU) > 2 ** 20
    assert all(isinstance(matrix, Streamed) for matrix in resident_or_streamed(matrices, CPU, 7.9 / 1024))
    assert "--feature_memory" in capsys.readouterr().out


@pytest.mark.parametrize("script, changes", [(IP_Bank_training, {}), (IP_Bank_training, {"holdout": 0.2}),
                                           (IP_End2End_training, {"ratios": "0,0.5"})])
def test_the_ledger_is_the_same(toy, script, changes, monkeypatch, capsys):
    for split in ("train", "val"):  # a file of half the size
        found = load_embeddings(toy / f"{split}.pt")
        found.features_ND = found.features_ND.half()
        save_embeddings(toy / f"{split}.pt", found)
    rows = []
    for name, memory in (("resident", None), ("streamed", 0)):
        monkeypatch.setattr(training_run, "DENSE_HEADS", toy / "dense" / name)
        run(script, toy, name, feature_memory=memory, **changes)
        assert ("batch by batch" in capsys.readouterr().out) == (name == "streamed")
        rows.append([{key: value for key, value in row.items() if key not in CLOCK} for row in ledger(toy / name)])
    assert rows[0] == rows[1] and any(row["ratio"] == -1 for row in rows[0])
