"""Controlled features: power, turn and accuracy by construction; the script on few images with known attributes."""

import csv

import numpy as np
import pytest
from bank_runs import own_caches  # noqa: F401

from iis.runtime import UserError, write_json
from reproduction import score_truth
from reproduction.lib.attribute_auroc import linear_probe
from reproduction.lib.controlled_features import RESTS, Images, controlled, linear_accuracy
from reproduction.lib.scripts import call_script

GROUPS = {"shape": ["circle", "square"], "texture": ["plain", "striped"], "size": ["small", "large"]}


def scenes(count, seed):
    """Attributes (N, 6), one word of each group; the class is shape x texture, size means nothing."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, (count, 3))
    return np.stack([values[:, group] == value for group in range(3) for value in range(2)], 1), (
        2 * values[:, 0] + values[:, 1])


@pytest.fixture(scope="module")
def images():
    (train_has, train), (val_has, val) = scenes(800, 0), scenes(400, 1)
    return Images(train_has, val_has, train, val)


@pytest.mark.parametrize("rest", RESTS)
def test_power_is_shared_as_asked(images, rest):
    """Without noise: share of the squared length along the true directions, and mean squared length 1 in all."""
    target = 0.9 if rest == "noise" else 0.99
    made = controlled(images, rest, 0.25, draw=0, target=target)
    clean = made.train_ND.shape[1] * made.noise ** 2  # the expected squared length of the noise
    own = ((made.train_ND @ made.directions_AD.T) ** 2).sum(1).mean() - len(made.directions_AD) * made.noise ** 2
    rest_there = 0.75 * 6 / 70 if rest == "noise" else 0  # isotropic: 6 of 70 coordinates are the attributes'
    assert (made.train_ND ** 2).sum(1).mean() == pytest.approx(1 + clean, rel=0.03)
    assert own == pytest.approx(0.25 + rest_there, rel=0.05)
    np.testing.assert_allclose(made.directions_AD @ made.directions_AD.T, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("rest", ["class code", "scattered code"])
def test_accuracy_is_held_while_attributes_come_and_go(images, rest):
    probes = []
    for share in (0, 0.5, 1):
        made = controlled(images, rest, share, draw=1, target=0.8)
        assert made.accuracy == pytest.approx(0.8, abs=0.01)
        assert linear_accuracy(made.train_ND, made.val_ND, images) == pytest.approx(made.accuracy)  # turned: the same
        size = slice(4, 6)  # the attribute that no class tells
        probes.append(linear_probe(made.train_ND, images.train_has_NA[:, size], made.val_ND,
                                   images.val_has_NA[:, size]).mean())
    assert probes[0] == pytest.approx(0.5, abs=0.08) and probes[0] < probes[1] < probes[2]


def test_noise_alone_tells_nothing(images):
    made = controlled(images, "noise", 0.0, draw=0)
    assert made.noise == 0 and made.accuracy == pytest.approx(0.25, abs=0.08)


def test_a_draw_decides_everything(images):
    first, again, other = (controlled(images, "scattered code", 0.5, draw, 0.8) for draw in (0, 0, 1))
    np.testing.assert_array_equal(first.val_ND, again.val_ND)
    assert not np.isclose(first.val_ND, other.val_ND).all() and not np.isclose(first.directions_AD,
                                                                              other.directions_AD).all()


def test_what_cannot_be_made_is_one_sentence(images):
    with pytest.raises(UserError, match="the share in"):
        controlled(images, "noise", 1.5, 0)
    blind = Images(images.train_has_NA[:, 4:], images.val_has_NA[:, 4:], images.train_labels_N,
                     images.val_labels_N)  # size alone cannot tell the class
    with pytest.raises(UserError, match="lower --target"):
        controlled(blind, "class code", 1.0, 0)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    images, words = {}, [word for group in GROUPS.values() for word in group]
    for split, count, seed in (("train", 200, 0), ("val", 100, 1)):
        has, labels = scenes(count, seed)
        images |= {f"{split}/class{label}/{row}.png": {"concepts": [word for word, true in zip(words, one, strict=True)
                                                                    if true]}
                   for row, (one, label) in enumerate(zip(has, labels, strict=True))}
    file = tmp_path_factory.mktemp("world") / "captions.json"
    write_json(file, {"attributes": GROUPS, "images": images})
    return file


def test_the_script_trains_three_banks_on_every_set(tmp_path, captions):
    folder = call_script(score_truth, {"captions": captions, "shares": "0,0.5,1", "draws": 1, "rests": "noise",
                                     "n_epoch": 1, "device": "cpu", "save_dir": tmp_path / "out"})
    lines = list(csv.DictReader((folder / "score_truth.csv").open()))
    assert len(lines) == 3 * 3 and (folder / "score_truth.pdf").is_file()
    assert {line["bank"] for line in lines} == {"Prototype", "Random", "Own"}
    near = [line for line in lines if line["near_chance"] == "True"]
    assert ("noise", "0.0") in {(line["rest"], line["share"]) for line in near}
    shown = (folder / "score_truth.md").read_text()
    assert "| noise | IIS, true attributes | n.c. |" in shown
    assert len(list(folder.glob("dense_heads/controlled_*"))) == 3 and not (tmp_path / "dense_heads").exists()


def test_rho_by_hand_leaves_out_what_is_near_chance():
    lines = [{"rest": rest, "share": share, "draw": draw, "bank": bank, "iis": iis + 0.001 * draw, "dense": 0.9,
              "near_chance": share == 0, "probe_auroc": share, "noise": 0.1}
             for rest in RESTS for bank in ("Prototype", "Random", "Own") for draw in (0, 1)
             for share, iis in ((0, 9.0), (0.25, 0.5), (0.5, 0.7), (0.75, 0.6), (1, 0.8))]
    row = score_truth.table(lines)[0]
    # Ranks 1 3 2 4 against 1 2 3 4: 1 - 6 · 2 / (4 · 15) = 0.8. Of 24 orders 8 reach |ρ| 0.8: 1 + 3, and mirrored.
    assert row["ρ"] == "+0.80" and row["p"] == f"{8 / 24:.3f}" and row["share 0"] == "n.c."
    assert row["ρ over draws"] == "0.80 ± 0.00" and row["share 1"] == "0.800"


def test_too_few_shares_and_no_accuracy_are_refused(tmp_path, captions):
    with pytest.raises(UserError, match="needs 3 or more"):
        call_script(score_truth, {"captions": captions, "shares": "0,1", "save_dir": tmp_path})
    for target in ("nan", "2"):
        with pytest.raises(UserError, match=f"--target {target} is no accuracy"):
            call_script(score_truth, {"captions": captions, "target": target, "save_dir": tmp_path})
