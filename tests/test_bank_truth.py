"""AUROC of concepts for true attributes: by hand, against scikit-learn, and through the script on a known bank."""

import csv

import numpy as np
import pytest
import torch
from bank_runs import own_caches  # noqa: F401
from sklearn.metrics import roc_auc_score

from iis.embedding_file import Embeddings, save_embeddings
from iis.runtime import UserError, write_json
from IP_training import IP_Bank_training
from reproduction import bank_truth
from reproduction.bank_truth import own_words
from reproduction.lib.attribute_auroc import Captions, auroc, best_matching, linear_probe
from reproduction.lib.scripts import call_script


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


def test_random_concepts_flatter_when_chosen_and_judged_on_one_set():
    """400 random columns: the best on its own set is far above 0.5, the judged one is not."""
    rng = np.random.default_rng(0)
    values, has = rng.standard_normal((2, 60, 400)), rng.random((2, 60, 10)) < 0.5
    judged = best_matching(values[0], has[0], values[1], has[1]).mean()
    assert best_matching(values[0], has[0], values[0], has[0]).mean() > 0.65 > 0.56 > judged > 0.44


def test_the_probe_finds_a_direction_that_is_there():
    rng = np.random.default_rng(0)
    x, direction = rng.standard_normal((2, 300, 8)), rng.standard_normal(8)
    has = (x @ direction > 0)[..., None]
    assert linear_probe(x[0], has[0], x[1], has[1])[0] > 0.98


@pytest.fixture
def known(tmp_path):
    """A folder with a run on images whose feature m is attribute m (red, striped) plus noise: a bank of one's own."""
    rng = np.random.default_rng(0)
    has = rng.random((300, 2)) < 0.5
    features = np.concatenate([has * 2.0, np.zeros((300, 2))], 1) + 0.3 * rng.standard_normal((300, 4))
    images = {}
    for split, rows in (("train", slice(0, 200)), ("val", slice(200, 300))):
        names = [f"a/{row}.png" for row in range(300)[rows]]
        save_embeddings(tmp_path / f"{split}.pt", Embeddings(
            torch.tensor(features[rows]).float(), torch.tensor(has[rows, 0]).long(), ["a", "b"], names))
        images |= {f"{split}/{name}": {"concepts": [word for word, true in zip(("red", "striped"), row, strict=True)
                                                    if true]} for name, row in zip(names, has[rows], strict=True)}
    captions = tmp_path / "toy" / "captions.json"
    write_json(captions, {"attributes": {"colour": ["red"], "texture": ["striped"]}, "images": images})
    np.save(tmp_path / "bank.npy", np.eye(4, dtype=np.float32)[[0, 2, 3]])  # red, and two of noise
    call_script(IP_Bank_training, {"bank": tmp_path / "bank.npy", "train_pt": tmp_path / "train.pt", "device": "cpu",
                                 "val_pt": tmp_path / "val.pt", "model_name": "net", "dataset": "toy", "seeds": 2,
                                 "n_epoch": 1, "save_dir": tmp_path / "run"})
    return tmp_path


def flags(folder, **changes):
    return {"model_root": folder / "run", "captions": folder / "toy" / "captions.json", "save_dir": folder / "out",
            **changes}


def test_the_script_finds_the_concept_that_is_there_and_misses_the_other(known):
    folder = call_script(bank_truth, flags(known))
    with open(folder / "bank_truth_attributes.csv") as file:
        found = {(line["bank"], line["seed"], line["attribute"]): float(line["auroc"]) for line in csv.DictReader(file)}
    for seed in ("0", "1"):
        assert found["Own, unnormalised", seed, "red"] > 0.98 and found["Own", seed, "red"] > 0.9
        assert 0.3 < found["Own, unnormalised", seed, "striped"] < 0.7
    assert found["(linear probe)", "0", "striped"] > 0.98
    shown = (folder / "bank_truth.md").read_text()
    assert "| net | 3 | Own |" in shown and "| 1.0 ± 0.0 |" in shown


def test_bad_input_is_one_sentence(known):
    with pytest.raises(UserError, match="no file .*nowhere.json with the true attributes"):
        call_script(bank_truth, flags(known, captions=known / "nowhere.json"))
    with pytest.raises(UserError, match="--enough 2 is no AUROC"):
        call_script(bank_truth, flags(known, enough=2))
    captions = known / "other" / "captions.json"
    for other in ([], {"a": 1}):
        write_json(captions, other)
        with pytest.raises(UserError, match="does not hold the true attributes of images"):
            Captions(captions)
    write_json(captions, {"attributes": {"a": ["red"]}, "images": {}})
    with pytest.raises(UserError, match="none of these runs is of other"):
        call_script(bank_truth, flags(known, captions=captions))
    with pytest.raises(UserError, match="say nothing of the image val/b.png"):
        Captions(captions).has("val", ["b.png"])
    (known / "run" / "predictors" / "seed_0.safetensors").unlink()
    with pytest.raises(UserError, match="no bank could be read"):
        call_script(bank_truth, flags(known))
