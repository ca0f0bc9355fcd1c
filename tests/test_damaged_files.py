"""Every table and figure made of ledgers: damaged ledgers and indices are one sentence, and nothing else."""

import json
from importlib import import_module

import pytest
from made_sweep import call, made_ledger

from iis.runtime import UserError

SCRIPTS = ("accuracy_at_nec", "along_depth", "along_pretraining", "arr_curves", "bank_truth", "compare",
           "controls_table", "faithfulness", "iis_against_accuracy", "ncc", "predictions_table", "report")
LEDGERS = {"not text": "is no ledger", "not rows": "is not a ledger row", "without correct": "says nothing of hits",
           "correct damaged": "`hits` of a ledger's row is damaged", "correct too few": "holds fewer than its",
           "without a number": "says nothing of top1", "without a ratio": "lacks the sparsity ratio(s) 0.5",
           "without dense": "has no dense head", "empty": "has no rows"}
INDICES = {"[1]": "is no list of cells", '"text"': "is no list of cells", "{}": "is no list of cells",
           "[]": "there is no ledger", "{oops": "is not readable JSON"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder with a whole ledger, and one of each kind of damage."""
    root = tmp_path_factory.mktemp("damaged")
    rows = [json.loads(line) for line in
            (made_ledger(root / "whole", "net", 0.5, 0.4) / "results.jsonl").read_text().splitlines()]
    texts = {"not rows": "[1, 2]\n", "empty": "", **{name: "".join(json.dumps(row) + "\n" for row in kept)
             for name, kept in {
                 "without correct": [{key: row[key] for key in row if key != "hits"} for row in rows],
                 "correct damaged": [{**row, "hits": "!"} for row in rows],
                 "correct too few": [{**row, "n_val": 10 ** 6} for row in rows],
                 "without a number": [{**row, "top1": None} for row in rows],
                 "without a ratio": [row for row in rows if row["ratio"] != 0.5],
                 "without dense": [row for row in rows if row["ratio"] >= 0]}.items()}}
    for name in LEDGERS:
        (root / name).mkdir()
        (root / name / "results.jsonl").write_bytes(texts[name].encode() if name in texts else b"\xff\xfe\x00")
    return root


def refusal(name, capsys, *flags):
    """What a script prints, and the sentence it ends with."""
    with pytest.raises(UserError) as error:
        call(import_module(f"reproduction.{name}"), *("--collect",) * (name == "compare"), *flags)
    return capsys.readouterr().out + str(error.value)


@pytest.mark.parametrize("name", SCRIPTS)
def test_of_every_script(name, damaged, tmp_path, capsys):
    out = ["--save_dir", tmp_path / "out", *(["--ours", tmp_path / "ours.csv"] if name == "compare" else [])]
    if name == "bank_truth":
        (tmp_path / "captions.json").write_text('{"attributes": {}, "images": {}}')
        out += ["--captions", tmp_path / "captions.json"]
    text = refusal(name, capsys, *out, "--model_root", *(damaged / kind for kind in LEDGERS))
    for kind, sentence in LEDGERS.items():
        assert sentence in text, kind
    for index, sentence in INDICES.items():
        (tmp_path / "cells.json").write_text(index)
        assert sentence in refusal(name, capsys, *out, "--sweep", tmp_path / "cells.json"), index
    assert "not both" in refusal(name, capsys, *out, "--sweep", "x", "--model_root", damaged)
    assert refusal(name, capsys, *out).endswith("name either --sweep NAME or --model_root FOLDER")
    if name != "compare":  # it writes --ours
        (tmp_path / "file").touch()
        assert "cannot write" in refusal(name, capsys, "--save_dir", tmp_path / "file", *out[2:], "--model_root",
                                         damaged / "whole")
