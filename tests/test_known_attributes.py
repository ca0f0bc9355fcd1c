"""AUROC of concepts for true attributes, and features with a known share of them: by hand, against scikit-learn, and
through both scripts on images whose attributes are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_sweep import call, rows_of
from sklearn.metrics import roc_auc_score

from iis.embedding_file import Embeddings, save_embeddings
from iis.runtime import UserError, write_json
from IP_training import IP_Bank_training
from reproduction import bank_truth, score_truth
from reproduction.bank_truth import own_words
from reproduction.lib import known_attributes
from reproduction.lib.known_attributes import RESTS, Captions, Images, auroc, best_matching, controlled, linear_probe
from reproduction.lib.sweeps import call_script

GROUPS = {"shape": ["circle", "square"], "texture": ["plain", "striped"], "size": ["small", "large"]}


# ---- how well numbers tell attributes ----


def test_auroc_by_hand():
    # Images 0 and 1 are red, 0 and 2 are striped, none is blue.
    values = np.array([[3.0, -1.0], [2.0, -2.0], [1.0, -3.0], [0.0, 0.0]])
    has = np.array([[True, True, False], [True, False, False], [False, True, False], [False, False, False]])
    found = auroc(values, has)
    # red by column 0: 3 and 2 above 1 and 0. striped by column 1: -1 and -3 against -2 and 0, one of four pairs.
    assert found[0, 0] == 1 and found[1, 1] == 0.25 and np.isnan(found[2]).all()
    words = own_words(found, ["red", "striped", "blue"], ["striped", "red"])
    assert words[0] == found[0, 1] == 0.5 and words[1] == found[1, 0] == 0.75 and np.isnan(words[2])


def test_auroc_against_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    values, has = rng.integers(0, 6, (200, 5)).astype(float), rng.random((200, 3)) < [0.5, 0.1, 0.9]
    expected = [[roc_auc_score(has[:, a], values[:, m]) for m in range(5)] for a in range(3)]
    np.testing.assert_allclose(auroc(values, has), expected, rtol=1e-12)


def test_the_best_concept_is_chosen_on_train_and_judged_on_val():
    has = np.array([[True], [True], [False], [False]])
    up, down = np.array([4.0, 3, 2, 1]), np.array([1.0, 2, 3, 4])
    nearly = np.array([4.0, 2, 3, 1])  # AUROC 0.75
    # Concept 1 is best on train, with its sign turned; on val it is only nearly right, and concept 0's 1 is no matter.
    assert best_matching(np.stack([nearly, down], 1), has, np.stack([up, -nearly], 1), has) == [0.75]
    # A choice that does not carry over goes below 0.5 and is not turned once more.
    assert best_matching(up[:, None], has, down[:, None], has) == [0.0]


def test_random_concepts_flatter_when_chosen_and_judged_on_one_set_and_a_probe_finds_a_direction():
    rng = np.random.default_rng(0)
    values, has = rng.standard_normal((2, 60, 400)), rng.random((2, 60, 10)) < 0.5
    judged = best_matching(values[0], has[0], values[1], has[1]).mean()
    assert best_matching(values[0], has[0], values[0], has[0]).mean() > 0.65 > 0.56 > judged > 0.44
    x, direction = rng.standard_normal((2, 300, 8)), rng.standard_normal(8)
    has = (x @ direction > 0)[..., None]
    assert linear_probe(x[0], has[0], x[1], has[1])[0] > 0.98


def write_captions(file, groups, named, has):
    """captions.json of images {split: names} with attributes {split: (N, A)}."""
    words = [word for group in groups.values() for word in group]
    write_json(file, {"attributes": groups, "images": {
        f"{split}/{name}": {"concepts": [word for word, true in zip(words, row, strict=True) if true]}
        for split in named for name, row in zip(named[split], has[split], strict=True)}})


@pytest.fixture
def known(tmp_path):
    """A folder with a run on images whose feature m is attribute m (red, striped) plus noise: a bank of one's own."""
    rng = np.random.default_rng(0)
    has = rng.random((300, 2)) < 0.5
    features = np.concatenate([has * 2.0, np.zeros((300, 2))], 1) + 0.3 * rng.standard_normal((300, 4))
    named = {"train": [f"a/{row}.png" for row in range(200)], "val": [f"a/{row}.png" for row in range(200, 300)]}
    for split, rows in (("train", slice(0, 200)), ("val", slice(200, 300))):
        save_embeddings(tmp_path / f"{split}.pt", Embeddings(
            torch.tensor(features[rows]).float(), torch.tensor(has[rows, 0]).long(), ["a", "b"], named[split]))
    write_captions(tmp_path / "toy" / "captions.json", {"colour": ["red"], "texture": ["striped"]}, named,
                   {"train": has[:200], "val": has[200:]})
    np.save(tmp_path / "bank.npy", np.eye(4, dtype=np.float32)[[0, 2, 3]])  # red, and two of noise
    call_script(IP_Bank_training, {"bank": tmp_path / "bank.npy", "train_pt": tmp_path / "train.pt", "device": "cpu",
                                   "val_pt": tmp_path / "val.pt", "model_name": "net", "dataset": "toy", "seeds": 2,
                                   "n_epoch": 1, "save_dir": tmp_path / "run"})
    return tmp_path


def truth(folder, *flags):
    return call(bank_truth, "--model_root", folder / "run", "--captions", folder / "toy" / "captions.json",
                "--save_dir", folder / "out", *flags)


def test_bank_truth_finds_the_concept_that_is_there_and_misses_the_other(known):
    folder = truth(known)
    lines = rows_of(folder / "bank_truth_attributes.csv")
    found = {(line["bank"], line["seed"], line["attribute"]): float(line["auroc"]) for line in lines}
    assert len(found) == len(lines) == 2 * 2 * 2 + 2  # two seeds raw and normalised, and one probe
    for seed in ("0", "1"):
        assert found["Own, unnormalised", seed, "red"] > 0.98 and found["Own", seed, "red"] > 0.9
        assert 0.3 < found["Own, unnormalised", seed, "striped"] < 0.7
    assert found["(linear probe)", "0", "striped"] > 0.98
    text = (folder / "bank_truth.md").read_text()
    assert "| net | 3 | Own |" in text and "| 1.0 ± 0.0 |" in text
    line = next(line for line in rows_of(folder / "bank_truth.csv") if line["bank"] == "Own")
    assert float(line["auroc"]) == pytest.approx(np.mean([value for key, value in found.items() if key[0] == "Own"]))


def test_bad_input_of_bank_truth_is_one_sentence(known):
    with pytest.raises(UserError, match="no file .*nowhere.json with the true attributes"):
        truth(known, "--captions", known / "nowhere.json")
    captions = known / "other" / "captions.json"
    write_json(captions, {"attributes": {"a": ["red"]}, "images": {}})
    with pytest.raises(UserError, match="none of these runs is of other"):
        truth(known, "--captions", captions)
    with pytest.raises(UserError, match="say nothing of the image val/b.png"):
        Captions(captions).has("val", ["b.png"])
    (known / "run" / "predictors" / "seed_0.safetensors").unlink()
    with pytest.raises(UserError, match="no bank could be read"):
        truth(known)


# ---- features with a known share of attributes ----


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
    made = controlled(images, rest, 0.25, draw=0, target=0.9 if rest == "noise" else 0.99)
    noise = made.train_ND.shape[1] * made.noise ** 2  # the expected squared length of the noise
    own = ((made.train_ND @ made.directions_AD.T) ** 2).sum(1).mean() - len(made.directions_AD) * made.noise ** 2
    rest_there = 0.75 * 6 / 70 if rest == "noise" else 0  # isotropic: 6 of 70 coordinates are the attributes'
    assert (made.train_ND ** 2).sum(1).mean() == pytest.approx(1 + noise, rel=0.03)
    assert own == pytest.approx(0.25 + rest_there, rel=0.05)
    np.testing.assert_allclose(made.directions_AD @ made.directions_AD.T, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("rest", ["class code", "scattered code"])
def test_accuracy_is_held_while_attributes_come_and_go(images, rest):
    probes = []
    for share in (0, 0.5, 1):
        made = controlled(images, rest, share, draw=1, target=0.8)
        assert made.accuracy == pytest.approx(0.8, abs=0.01)
        assert known_attributes.linear_accuracy(made.train_ND, made.val_ND, images) == pytest.approx(made.accuracy)
        size = slice(4, 6)  # the attribute that no class tells
        probes.append(linear_probe(made.train_ND, images.train_has_NA[:, size], made.val_ND,
                                   images.val_has_NA[:, size]).mean())
    assert probes[0] == pytest.approx(0.5, abs=0.08) and probes[0] < probes[1] < probes[2]


def test_a_draw_decides_everything_and_noise_alone_tells_nothing(images):
    first, again, other = (controlled(images, "scattered code", 0.5, draw, 0.8) for draw in (0, 0, 1))
    np.testing.assert_array_equal(first.val_ND, again.val_ND)
    assert not np.isclose(first.val_ND, other.val_ND).all()
    assert not np.isclose(first.directions_AD, other.directions_AD).all()
    noise = controlled(images, "noise", 0.0, draw=0)
    assert noise.noise == 0 and noise.accuracy == pytest.approx(0.25, abs=0.08)


def test_what_cannot_be_made_is_one_sentence(images, tmp_path, captions):
    with pytest.raises(UserError, match="the share 1.5 of attributes is not in"):
        controlled(images, "noise", 1.5, 0)
    blind = Images(images.train_has_NA[:, 4:], images.val_has_NA[:, 4:], images.train_labels_N,
                   images.val_labels_N)  # size alone cannot tell the class
    with pytest.raises(UserError, match="lower --target"):
        controlled(blind, "class code", 1.0, 0)
    for flags, sentence in ((("--shares", "0,1"), "needs 3 or more"), (("--target", 2), "above 0 and at most 1")):
        with pytest.raises(UserError, match=sentence):
            call(score_truth, "--captions", captions, "--save_dir", tmp_path, *flags)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    file, named, has = tmp_path_factory.mktemp("world") / "captions.json", {}, {}
    for split, count, seed in (("train", 200, 0), ("val", 100, 1)):
        has[split], labels = scenes(count, seed)
        named[split] = [f"class{label}/{row}.png" for row, label in enumerate(labels)]
    write_captions(file, GROUPS, named, has)
    return file


def test_score_truth_trains_three_banks_on_every_set(tmp_path, captions):
    folder = call(score_truth, "--captions", captions, "--shares", "0,0.5,1", "--draws", 1, "--rests", "noise",
                  "--n_epoch", 1, "--device", "cpu", "--save_dir", tmp_path / "out")
    lines = rows_of(folder / "score_truth.csv")
    assert len(lines) == 3 * 3 and (folder / "score_truth.pdf").is_file()
    assert {line["bank"] for line in lines} == {"Prototype", "Random", "Own"}
    near = [line for line in lines if line["near_chance"] == "True"]
    assert ("noise", "0.0") in {(line["rest"], line["share"]) for line in near}
    assert all("close to chance" in line["marks"] for line in near)
    assert "| noise | IIS, true attributes | n.c. |" in (folder / "score_truth.md").read_text()


def test_rho_by_hand_leaves_out_what_is_close_to_chance():
    found = pd.DataFrame([
        {"rest": rest, "share": share, "draw": draw, "bank": bank, "iis": iis + 0.001 * draw, "dense": 0.9,
         "near_chance": share == 0, "probe_auroc": share, "noise": 0.1}
        for rest in RESTS for bank in score_truth.BANKS for draw in (0, 1)
        for share, iis in ((0, 9.0), (0.25, 0.5), (0.5, 0.7), (0.75, 0.6), (1, 0.8))])
    row = score_truth.table(found)[0]
    # Ranks 1 3 2 4 against 1 2 3 4: 1 - 6 · 2 / (4 · 15) = 0.8. Of 24 orders 8 reach |ρ| 0.8: 1 + 3, and mirrored.
    assert row["ρ"] == "+0.80" and row["p"] == f"{8 / 24:.3f}" and row["share 0"] == "n.c."
    assert row["ρ over draws"] == "0.80 ± 0.00" and row["share 1"] == "0.800"
