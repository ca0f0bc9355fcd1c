"""Variance shares through the script: every bank under every head, and stage-1 seeds that keep apart."""

import numpy as np
import pytest
from conftest import clusters
from made_sweep import call, rows_of

from iis import names
from iis.cli import parse
from iis.embedding_file import save_embeddings
from iis.results import read_ledger
from iis.runtime import UserError
from IP_training import inputs
from reproduction import variance_shares
from reproduction.variance_shares import components


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """Stage 2's files of `toy` under their usual names, in a tree of the test's own."""
    for module in (names, inputs):
        monkeypatch.setattr(module, "EMBEDDINGS", tmp_path)
    usual = lambda *parts, root=tmp_path: names.elements_file(*parts, root=root)  # noqa: E731
    for module in (variance_shares, inputs):
        monkeypatch.setattr(module, "elements_file", usual)
    for split, count, name in (("train", 200, "toy_train_net_fc.pt"), ("val", 100, "toy_val_net_fc.pt"),
                               ("elements", 80, "toy_segments_visual_element_emb.pkl")):
        embeddings = clusters(count, split)
        if split == "elements":
            embeddings.provenance["elements"] |= {"seed": 0, "segment_choice": "sample", "bounding_box": "whole",
                                                  "image_per_class": 7, "format": "png"}
        save_embeddings(tmp_path / "net" / name, embeddings)
    return tmp_path


def shares(folder, *flags):
    return call(variance_shares, "--dataset", "toy", "--model", "net", "--num_concepts", 8, "--n_epoch", 1, "--stage1",
                1, "--save_dir", folder / "out", *flags)


def test_the_script_trains_every_bank_under_every_head(embedded):
    folder = shares(embedded, "--banks", 2, "--heads", 3)
    cells, lines = rows_of(folder / "scores.csv"), rows_of(folder / "variance_shares.csv")
    assert [(cell["bank_seed"], cell["head_seed"]) for cell in cells] == [(b, h) for b in "01" for h in "012"]
    rows = read_ledger(folder / "stage1_0" / "bank_1" / "results.jsonl")
    assert {row["bank_seed"] for row in rows} == {1} and {row["seed"] for row in rows} == {0, 1, 2}
    found = components(np.array([float(cell["iis"]) for cell in cells]).reshape(1, 2, 3))
    assert [line["source"] for line in lines] == ["bank", "head", "bank × head", "all"]
    assert [float(line["variance"]) for line in lines] == pytest.approx([
        *found.variance.values(), sum(found.variance.values())])
    assert (lines[-1]["share"], lines[-1]["share_low"]) == ("1.0", "")


def test_another_stage1_seed_cuts_as_the_first_did_and_keeps_apart(embedded, monkeypatch):
    """Seed 0 is stage 2's own file; another seed repeats its settings in a folder of its own."""
    called = []
    monkeypatch.setattr(variance_shares, "call_script", lambda script, flags: called.append((script.__name__, flags)))
    file = embedded / "net" / "toy_segments_visual_element_emb.pkl"
    settings = parse(variance_shares.Settings, ["--dataset", "toy", "--model", "net"])
    assert variance_shares.elements_of(settings, embedded / "v", 0) == file and not called
    made = variance_shares.elements_of(settings, embedded / "v", 2)
    assert made == embedded / "v" / "toy" / "embs_seed2" / "net" / file.name
    (cut, how), (embed, what) = called
    assert cut.endswith("segment_extractor") and embed.endswith("visual_element_emb_extractor")
    assert (how["seed"], how["image_per_class"], how["format"]) == (2, 7, "png")
    assert how["save_root"] == what["data_path"] and what["save_root"] == made.parents[1]


def test_bad_input_is_one_sentence(embedded):
    with pytest.raises(UserError, match="--banks 1 --heads 4: at least 2 of each"):
        shares(embedded, "--banks", 1)
    with pytest.raises(UserError, match="there are no embedded segments"):
        shares(embedded, "--model", "other")
