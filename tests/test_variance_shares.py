"""Variance components: by hand, against the sums of squares of a fitted linear model, by simulation; and the script."""

import csv

import numpy as np
import pytest
from bank_runs import own_caches  # noqa: F401
from conftest import clusters

from iis import names
from iis.embedding_file import save_embeddings
from iis.results import read_ledger
from iis.runtime import UserError
from IP_training import inputs
from reproduction import variance_shares
from reproduction.lib.variance_components import components, mean_squares, share_intervals, simulate


def test_two_way_by_hand():
    # Rows (banks) 1 3 | 5 9: mean 4.5. Bank means 2, 7; head means 3, 6; rest 1 - 2 - 3 + 4.5 = 0.5 up to sign.
    # MS bank = 2 · (2.5² + 2.5²) = 25, MS head = 2 · (1.5² + 1.5²) = 9, MS rest = 4 · 0.25 = 1.
    scores = np.array([[[1.0, 3.0], [5.0, 9.0]]])
    assert mean_squares(scores) == pytest.approx({"bank": 25, "head": 9, "bank × head": 1})
    found = components(scores)
    assert found.variance == pytest.approx({"bank": 12, "head": 4, "bank × head": 1}) and found.negative == ()
    assert found.shares == pytest.approx({"bank": 12 / 17, "head": 4 / 17, "bank × head": 1 / 17})


def test_a_negative_estimate_is_zero_and_named():
    # Pure interaction: both main effects have mean square 0, so their estimates are -MS / 2.
    found = components(np.array([[[1.0, -1.0], [-1.0, 1.0]]]))
    assert found.negative == ("bank", "head") and found.variance == {"bank": 0, "head": 0, "bank × head": 4}


def test_constant_scores_have_no_shares():
    assert np.isnan(list(components(np.ones((2, 2, 2))).shares.values())).all()


def test_mean_squares_are_those_of_nested_linear_models():
    """Each mean square is the drop in the residual sum of squares when its dummies join the model (least squares)."""
    S, B, H = 3, 4, 5
    scores = np.random.default_rng(1).standard_normal((S, B, H))
    s, b, h = (index.ravel() for index in np.indices((S, B, H)))

    def residual(*labels):
        columns = np.concatenate([label[:, None] == np.unique(label) for label in labels], axis=1).astype(float)
        fit = columns @ np.linalg.lstsq(columns, scores.ravel(), rcond=None)[0]
        return ((scores.ravel() - fit) ** 2).sum()

    one, bank, both = np.zeros_like(s), s * B + b, s * H + h
    expected = {"stage-1 sample": (residual(one) - residual(s)) / (S - 1),
                "bank": (residual(s) - residual(bank)) / (S * (B - 1)),
                "head": (residual(one) - residual(h)) / (H - 1),
                "stage-1 sample × head": (residual(s, h) - residual(both)) / ((S - 1) * (H - 1)),
                "bank × head": residual(bank, both) / (S * (B - 1) * (H - 1))}
    assert mean_squares(scores) == pytest.approx(expected)


def test_components_of_simulated_scores():
    """Unbiased: over many draws the mean of the unclipped estimates is the truth; here with all sources large."""
    truth = {"stage-1 sample": 4.0, "bank": 3.0, "head": 2.0, "stage-1 sample × head": 1.0, "bank × head": 0.5}
    rng = np.random.default_rng(0)
    found = [components(simulate(truth, (12, 6, 12), rng)).variance for _ in range(400)]
    for source, value in truth.items():
        estimates = [variance[source] for variance in found]
        assert np.mean(estimates) == pytest.approx(value, abs=4 * np.std(estimates) / 400 ** 0.5), source


def test_intervals_hold_the_share_and_narrow_with_the_design():
    found = components(simulate({"bank": 3.0, "head": 1.0, "bank × head": 1.0}, (1, 40, 40), np.random.default_rng(0)))
    wide, narrow = (share_intervals(found, (1, size, size), draws=300)["bank"] for size in (4, 40))
    assert narrow[0] < found.shares["bank"] < narrow[1] and narrow[1] - narrow[0] < wide[1] - wide[0]


def test_too_few_levels_are_refused():
    with pytest.raises(UserError, match="at least 2 banks and 2 heads"):
        components(np.zeros((1, 1, 3)))


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
            embeddings.provenance["elements"]["seed"] = 0
        save_embeddings(tmp_path / "net" / name, embeddings)
    return tmp_path


def shares(folder, *flags):
    script = variance_shares.parser()
    return variance_shares.main(script.settings(["--dataset", "toy", "--model", "net", "--num_concepts", "8", "--n_epoch",
                                               "1", "--stage1", "1", "--save_dir", str(folder / "out"), *flags]))


def test_the_script_trains_every_bank_under_every_head(embedded):
    folder = shares(embedded, "--banks", "2", "--heads", "3")
    cells = list(csv.DictReader((folder / "scores.csv").open()))
    assert [(cell["bank_seed"], cell["head_seed"]) for cell in cells] == [(b, h) for b in "01" for h in "012"]
    rows = read_ledger(folder / "stage1_0" / "bank_1" / "results.jsonl")
    assert {row["bank_seed"] for row in rows} == {1} and {row["seed"] for row in rows} == {0, 1, 2}
    lines = list(csv.DictReader((folder / "variance_shares.csv").open()))
    assert [line["source"] for line in lines] == ["bank", "head", "bank × head", "all"]
    scores = np.array([float(cell["iis"]) for cell in cells]).reshape(1, 2, 3)
    assert float(lines[0]["variance"]) == pytest.approx(components(scores).variance["bank"])


def test_another_stage1_seed_cuts_as_the_first_did_and_keeps_apart(embedded, monkeypatch):
    """Seed 0 is stage 2's own file; another seed repeats its settings in a folder of its own."""
    called = []
    monkeypatch.setattr(variance_shares, "call_script", lambda script, flags: called.append((script.__name__, flags)))
    file = embedded / "net" / "toy_segments_visual_element_emb.pkl"
    embeddings = clusters(80, "elements")
    embeddings.provenance["elements"] |= {"seed": 0, "segment_choice": "sample", "bounding_box": "whole",
                                          "image_per_class": 7, "format": "png"}
    save_embeddings(file, embeddings)
    args = variance_shares.parser().settings(["--dataset", "toy", "--model", "net"])
    assert variance_shares.elements_of(args, embedded / "v", 0) == file and not called
    made = variance_shares.elements_of(args, embedded / "v", 2)
    assert made == embedded / "v" / "toy" / "embs_seed2" / "net" / file.name
    (cut, how), (embed, what) = called
    assert cut.endswith("segment_extractor") and embed.endswith("visual_element_emb_extractor")
    assert (how["seed"], how["image_per_class"], how["format"]) == (2, 7, "png")
    assert how["save_root"] == what["data_path"] and what["save_root"] == made.parents[1]


def test_bad_input_is_one_sentence(embedded):
    with pytest.raises(UserError, match="--banks 1 --heads 4: at least 2 of each"):
        shares(embedded, "--banks", "1")
    with pytest.raises(UserError, match="there are no embedded segments"):
        shares(embedded, "--model", "other")
