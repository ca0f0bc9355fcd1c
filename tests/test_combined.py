"""Combined: who gets how many concepts, and every block normalised by its own rule."""

import pytest
import torch
from bank_runs import (  # noqa: F401
    GRID,
    assert_plain,
    ledger,
    own_caches,
    predictors,
    refusal,
    run,
    save_clip,
    text_flags,
)

from IP_training import IP_Bank_training, IP_Cluster_training
from IP_training.combined import shares
from IP_training.concept_banks import unit_rows


def combined(toy, out="out", **changes):
    return run(IP_Bank_training, toy, out, kind="Combined", **changes)


def refused(toy, **changes):
    return refusal(IP_Bank_training, toy, kind="Combined", **changes)


@pytest.mark.parametrize("total, count, expected", [(7, 2, [4, 3]), (200, 3, [67, 67, 66]), (6, 2, [3, 3]),
                                                    (3, 3, [1, 1, 1])])
def test_shares(total, count, expected):
    assert shares(total, count) == expected


def test_visual_and_textual_share_seven_concepts(toy):
    save_clip(toy)
    rows = ledger(combined(toy, **text_flags(toy, num_concepts=7)))
    assert len(rows) == GRID and {row["bank"] for row in rows} == {"Combined"}
    assert {row["bank_size"] for row in rows if row["ratio"] >= 0} == {7}
    assert rows[0]["parts"] == ["Prototype", "Text"] and rows[0]["clip"] == "toy CLIP"
    tensors, described = predictors(toy / "out")
    kinds = [lines[0].split(": ")[0] for lines in described["concepts"]["all"]]
    assert kinds == ["Prototype"] * 4 + ["Text"] * 3
    assert described["blocks"]["all"] == [["layer", 4], ["standard", 3]]
    assert torch.equal(tensors["mean"][:4], torch.zeros(4)) and torch.equal(tensors["std"][:4], torch.ones(4))
    assert (tensors["std"][4:] != 1).all()
    for ratio in ("0", "0.5"):  # nothing is learned where the training moments standardise
        assert torch.equal(tensors[f"{ratio}/scale"][4:], torch.ones(3))
        assert not torch.equal(tensors[f"{ratio}/scale"][:4], torch.ones(4))
    assert_plain(toy / "out", slice(0, 4))


def test_the_parts_are_the_banks_of_their_own_scripts(toy):
    """Two LayerNorm blocks stay two; the parts are what Cluster and Random give for the same seed and share."""
    combined(toy, parts="Cluster,Random", num_concepts=21, ratios="0.5", first_seed=1)
    run(IP_Cluster_training, toy, "cluster", num_concepts=11, ratios="0.5", first_seed=1)
    run(IP_Bank_training, toy, "random", num_concepts=10, ratios="0.5", first_seed=1)
    whole, cluster, random = (predictors(toy / name, 1) for name in ("out", "cluster", "random"))
    assert torch.equal(whole[0]["bank"], torch.cat([cluster[0]["bank"], random[0]["bank"]]))
    assert whole[1]["blocks"]["all"] == [["layer", 11], ["layer", 10]]


def test_refusals(toy):
    assert "did you mean Prototype" in refused(toy, parts="Prototyp,Random")
    assert "at least two" in refused(toy, parts="Random")
    assert "twice" in refused(toy, parts="Random,Cluster,Random")
    too_few = refused(toy, parts="Random,Cluster,Prototype", num_concepts=2)
    assert "too few for the parts Random, Cluster, Prototype" in too_few
    assert "80 visual elements" in refused(toy, parts="Cluster,Random", num_concepts=200)
    assert "textual_emb_extractor.py" in refused(toy, **text_flags(toy, num_concepts=8))


def test_a_bank_of_ones_own_goes_in_whole(toy, tmp_path):
    own = unit_rows(torch.randn(5, 12, generator=torch.Generator().manual_seed(0)))
    torch.save(own, tmp_path / "own.pt")
    flags = {"parts": "Prototype,Own", "num_concepts": 12, "bank": tmp_path / "own.pt"}
    tensors, _ = predictors(combined(toy, **flags))
    assert tensors["bank"].shape == (12, 12) and torch.equal(tensors["bank"][7:], own)
    assert "Own among the --parts" in refused(toy, **{**flags, "parts": "Prototype,Random"})
    assert "the bank of your own has 5" in refused(toy, **{**flags, "num_concepts": 5})
