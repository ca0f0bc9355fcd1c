"""Variance shares: components by hand, against least squares and over drawn populations; and the script."""

import numpy as np
import pytest
from conftest import clusters
from made_sweep import call, rows_of
from scipy import stats

from iis import names
from iis.cli import parse
from iis.embedding_file import save_embeddings
from iis.results import read_ledger
from iis.runtime import UserError
from IP_training import inputs
from IP_training.banks import balanced_choice
from reproduction import variance_shares
from reproduction.variance_shares import SOURCES, bank_seed, components, mean_squares, share_limits


def normal_scores(variance, shape, rng):
    """Scores (S, B, H) of normal sources with these variances."""
    samples, banks, heads = shape
    shapes = ((samples, 1, 1), (samples, banks, 1), (1, 1, heads), (samples, 1, heads), shape)
    return sum((value ** 0.5 * rng.standard_normal(own) for value, own in zip(variance, shapes, strict=True)),
               np.zeros(shape))


def test_two_way_components_by_hand():
    # Rows (banks) 1 3 | 5 9: mean 4.5. Bank means 2, 7; head means 3, 6; rest 1 - 2 - 3 + 4.5 = 0.5 up to sign.
    # MS bank = 2 · (2.5² + 2.5²) = 25, MS head = 2 · (1.5² + 1.5²) = 9, MS rest = 4 · 0.25 = 1.
    scores = np.array([[[1.0, 3.0], [5.0, 9.0]]])
    assert mean_squares(scores) == pytest.approx({"bank": 25, "head": 9, "bank × head": 1})
    found = components(scores)
    assert found.variance == pytest.approx({"bank": 12, "head": 4, "bank × head": 1}) and found.negative == ()
    # Pure interaction: both main effects have mean square 0, so their estimates are -MS / 2: given as 0, and named.
    found = components(np.array([[[1.0, -1.0], [-1.0, 1.0]]]))
    assert found.negative == ("bank", "head") and found.variance == {"bank": 0, "head": 0, "bank × head": 4}
    assert np.isnan(list(share_limits(np.ones((2, 2, 2))).values())).all()
    with pytest.raises(UserError, match="at least 2 banks and 2 heads"):
        components(np.zeros((1, 1, 3)))


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
    assert mean_squares(scores) == pytest.approx({
        "stage-1 sample": (residual(one) - residual(s)) / (S - 1),
        "bank": (residual(s) - residual(bank)) / (S * (B - 1)),
        "head": (residual(one) - residual(h)) / (H - 1),
        "stage-1 sample × head": (residual(s, h) - residual(both)) / ((S - 1) * (H - 1)),
        "bank × head": residual(bank, both) / (S * (B - 1) * (H - 1))})


def test_components_of_made_scores_are_unbiased():
    truth, rng = (4.0, 3.0, 2.0, 1.0, 0.5), np.random.default_rng(0)
    found = np.array([list(components(normal_scores(truth, (12, 6, 12), rng)).variance.values()) for _ in range(400)])
    assert (np.abs(found.mean(0) - truth) < 4 * found.std(0) / 400 ** 0.5).all()


def drawn_scores(rng, repeat, seed_of_bank):
    """Scores (8, 4, 3) of a small world, and the true variance of the mean over banks from sample to sample, given the
    images. 8 images of 4 classes have 12 segments each; a stage-1 sample is 3 segments of every image, drawn without
    replacement, a bank 8 of these rows, and a score the mean value of the bank, with noise of the heads."""
    values = 2.5 * rng.standard_normal((8, 1)) + rng.standard_normal((8, 12))
    labels, scores = np.repeat(np.arange(4), 6), np.empty((8, 4, 3))
    for sample in range(8):
        pool = np.concatenate([rng.choice(of_image, 3, replace=False) for of_image in values])
        for bank in range(4):
            rows = balanced_choice(labels, 8, repeat, seed_of_bank(sample, bank))
            scores[sample, bank] = pool[rows].mean() + 0.1 * rng.standard_normal(3)
    return scores + 0.2 * rng.standard_normal(3), values.var(1, ddof=1).mean() / (8 * 3) * (1 - 3 / 12)


def test_the_stage1_variance_of_a_drawn_population_is_found_and_was_lost_with_one_bank_seed():
    def errors(seed_of_bank):
        rng = np.random.default_rng(5)
        found = []
        for repeat in range(80):
            scores, truth = drawn_scores(rng, repeat, seed_of_bank)
            squares = mean_squares(scores)
            assert tuple(squares) == SOURCES
            variances = np.linalg.solve(variance_shares.expectations(scores.shape), list(squares.values()))
            found.append((variances[0] - truth, variances[0], truth))
        error, found, truth = np.array(found).T
        return error.mean(), error.std() / 80 ** 0.5, (found < 0).mean(), truth.mean()

    mean, standard_error, below_0, truth = errors(bank_seed)
    assert abs(mean) < 3 * standard_error and standard_error < truth / 2
    of_one_seed = errors(lambda sample, bank: bank)
    assert of_one_seed[0] < -2 * truth and of_one_seed[2] > 0.6 > 0.5 > below_0
    seeds = [bank_seed(sample, bank) for sample in range(30) for bank in range(variance_shares.APART)]
    assert len(set(seeds)) == len(seeds)  # no two banks with one seed


@pytest.mark.parametrize("truth", [(0, 0.9, 0.03, 0, 0.07), (0.2, 0.5, 0.1, 0, 0.2), (0.03, 0.3, 0.5, 0.02, 0.15)])
def test_limits_hold_as_often_as_they_say(truth):
    """Of 80 designs of each truth, also at the boundary; 95 % of 80 is 76 ± 2."""
    rng, held = np.random.default_rng(1), np.zeros(5)
    for _ in range(80):
        scores = normal_scores(truth, (5, 4, 3), rng)
        held += [low <= share <= high for share, (low, high) in zip(truth, share_limits(scores, draws=500).values(),
                                                                    strict=True)]
    assert (held >= 69).all()


def test_limits_of_two_sources_are_those_of_f():
    """The bank's share of banks and residual alone, where the head gives nothing, has exact limits by F."""
    shape, rng = (1, 12, 12), np.random.default_rng(2)
    scores = normal_scores((0, 1.0, 0, 0, 1.0), shape, rng)
    scores -= scores.mean((0, 1))  # no head at all
    squares = mean_squares(scores)
    ratio = squares["bank"] / squares["bank × head"]
    f = stats.f.ppf([0.975, 0.025], 11, 121)
    exact = [(ratio / one - 1) / 12 for one in f]
    low, high = share_limits(scores)["bank"]
    assert (low, high) == pytest.approx([one / (1 + one) for one in exact], abs=0.04)
    more = share_limits(normal_scores((0, 1.0, 0, 0, 1.0), (1, 60, 60), rng))["bank"]
    assert more[1] - more[0] < high - low


# ---- the script ----


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
    assert {cell["stage1_seed"] for cell in cells} == {"0"}
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
    with pytest.raises(UserError, match="--banks 1 --heads 3: at least 2 of each"):
        shares(embedded, "--banks", 1)
    with pytest.raises(UserError, match="there are no embedded segments"):
        shares(embedded, "--model", "other")
