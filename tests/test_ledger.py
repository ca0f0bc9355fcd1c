"""The ledger: rows replace their own cell, damage is named, per-image correct survive packing."""

import numpy as np
import pytest

from iis.grid import DENSE
from iis.results import add_rows, pack_correct, read_ledger, unpack_correct
from iis.runtime import UserError


def row(ratio, top1, seed=0, rate=0.01):
    return {"seed": seed, "ratio": ratio, "learning_rate": rate, "top1": top1}


def test_a_row_computed_again_replaces_the_old_one(tmp_path):
    file = tmp_path / "results.jsonl"
    add_rows(file, [row(0.5, 0.1), row(DENSE, 0.9)])
    rows = add_rows(file, [row(0.5, 0.2), row(0.5, 0.3, seed=1)])
    assert [(r["seed"], r["ratio"], r["top1"]) for r in rows] == [(0, DENSE, 0.9), (0, 0.5, 0.2), (1, 0.5, 0.3)]
    assert read_ledger(file) == rows


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "results.jsonl"
    add_rows(file, [row(0.5, 0.1)])
    file.write_text(file.read_text() + '{"seed": 0, "rat')
    with pytest.raises(UserError, match="line 2"):
        read_ledger(file)


@pytest.mark.parametrize("count", [1, 8, 1001])
def test_correct_survive_packing(count):
    correct = np.random.default_rng(count).random(count) < 0.7
    assert (unpack_correct(pack_correct(correct), count) == correct).all()
