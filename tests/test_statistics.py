import numpy as np
import pytest

from iis import statistics
from iis.equations import area, saturated
from iis.grid import RATIOS
from iis.runtime import numpy_rng
from iis.statistics import (
    bootstrap_iis,
    bootstrap_means,
    interval,
    mean_std,
    over_seeds,
    plus_minus,
    retention_errors,
    within,
)
from reproduction.lib.statistics import holm


def test_mean_and_std_by_hand():
    assert mean_std([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3)))  # squares 16/9 + 1/9 + 25/9, over 2
    assert mean_std([0.5]) == (0.5, None)
    assert plus_minus(0.81234, 0.0021) == "0.8123 ± 0.0021" and plus_minus(0.5, None, 2) == "0.50"
    assert plus_minus(None, None) == "undefined"


def test_bootstrap_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    correct_RSN, dense_RN = rng.random((2, 8, 60)) < 0.6, rng.random((2, 60)) < 0.8
    scores = bootstrap_iis(RATIOS, correct_RSN, dense_RN, draws=105, seed=3).mean(1)
    picks = numpy_rng(3, "bootstrap", 60).multinomial(60, np.full(60, 1 / 60), size=100)
    assert len(scores) == 105
    for score, counts in zip(scores, picks, strict=False):
        rows = np.repeat(np.arange(60), counts)
        plain = [area(RATIOS, correct_RSN[r][:, rows].mean(1) / dense_RN[r][rows].mean()) for r in range(2)]
        assert score == pytest.approx(np.mean(plain), rel=1e-5)


def test_kept_resamples_are_those_that_would_be_drawn(monkeypatch):
    kept = [np.concatenate(list(statistics.resampled_images(50, 250, seed=3))) for _ in range(2)]
    monkeypatch.setattr(statistics, "KEPT", 0)  # too large to keep
    drawn = np.concatenate(list(statistics.resampled_images(50, 250, seed=3)))
    assert all(np.array_equal(one, drawn) and one.dtype == drawn.dtype for one in kept)
    assert drawn.shape == (250, 50) and (drawn.sum(1) == 50).all()


def test_bootstrap_spread_matches_theory():
    """One head that is right with p = 0.5 at every ratio, over an always-right dense head: IIS = 0.98 · accuracy."""
    correct = np.random.default_rng(1).random(2000) < 0.5
    scores = bootstrap_iis(RATIOS, np.tile(correct, (1, 8, 1)), np.ones((1, 2000), bool), draws=2000)[:, 0]
    assert scores.std() == pytest.approx(0.98 * np.sqrt(0.25 / 2000), rel=0.08)
    low, high = interval(scores)
    assert low < 0.98 * correct.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * scores.std(), rel=0.1)


def paired_heads(count=2000, seeds=3):
    """Correct predictions as real heads make them: an image is easy or hard for all of them, and few differ."""
    rng = np.random.default_rng(2)
    ease_N = rng.normal(1.5, 2, count)
    dense_RN = ease_N + rng.normal(0, 0.4, (seeds, count)) > 0
    return ease_N - np.linspace(0, 0.03, 8)[:, None] + rng.normal(0, 0.4, (seeds, 8, count)) > 0, dense_RN


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_paired_error_is_the_bootstraps_spread(seeds):
    correct_RSN, dense_RN = paired_heads(seeds=seeds)
    errors_S, error = retention_errors(RATIOS, correct_RSN, dense_RN)
    drawn = bootstrap_iis(RATIOS, correct_RSN, dense_RN, draws=2000).mean(1)
    assert error == pytest.approx(drawn.std(), rel=0.08)
    means_BRK = bootstrap_means(np.concatenate([correct_RSN, dense_RN[:, None]], axis=1), 2000)
    np.testing.assert_allclose(errors_S, (means_BRK[..., :-1] / means_BRK[..., -1:]).mean(1).std(0), rtol=0.08)
    # Two accuracies taken as independent have twice the error, and all these ARR would lie within it.
    accuracy_S, dense = correct_RSN.mean((0, 2)), dense_RN.mean()
    retention_S = accuracy_S / dense
    unpaired_S = retention_S * np.sqrt(((1 - accuracy_S) / accuracy_S + (1 - dense) / dense) / 2000)
    assert (unpaired_S > 1.9 * errors_S).all()
    assert saturated(retention_S, unpaired_S) and not saturated(retention_S, errors_S)


def test_the_paired_error_by_hand():
    # Dense right on images 0 and 1 of 4, the predictor on 0: ARR 0.5, influences (1 − 0.5, −0.5, 0, 0) / 0.5.
    errors_S, error = retention_errors([0, 0.98], np.array([[[1, 0, 0, 0], [1, 1, 0, 0]]]), np.array([[1, 1, 0, 0]]))
    assert errors_S.tolist() == pytest.approx([np.sqrt(0.5) / 2, 0])
    assert error == pytest.approx(0.49 * np.sqrt(0.5) / 2)  # the trapezoid's weight of the first ratio


@pytest.mark.filterwarnings("error")
def test_a_resample_without_a_right_image_poisons_nothing():
    dense_RN = np.arange(20) < np.array([[2], [20]])
    scores_BR = bootstrap_iis(RATIOS, np.repeat(dense_RN[:, None], 8, 1), dense_RN, draws=500)
    undefined = np.isnan(scores_BR)
    assert 0.07 < undefined[:, 0].mean() < 0.18 and not undefined[:, 1].any()  # 0.9 ** 20 = 0.12
    assert interval(scores_BR[:, 0]) == pytest.approx((0.98, 0.98)) and np.isnan(interval(scores_BR[:0, 0])).all()
    drawn_B = over_seeds(scores_BR)
    assert (np.isnan(drawn_B) == undefined[:, 0]).all() and interval(drawn_B) == pytest.approx((0.98, 0.98))
    assert (within(0.81234, 0.9), within(None, None)) == ("0.8123 to 0.9000", "undefined")


def test_bootstrap_of_means():
    values_N = np.random.default_rng(0).normal(size=400)
    drawn_BRK = bootstrap_means(np.array([[values_N, -values_N], [values_N, np.ones(400)]]), draws=2000)
    assert drawn_BRK.shape == (2000, 2, 2)
    assert (drawn_BRK[:, 0, 0] == drawn_BRK[:, 1, 0]).all()  # paired: one resample serves all
    assert drawn_BRK[:, 1, 1] == pytest.approx(1)
    assert drawn_BRK[:, 0, 0].mean() == pytest.approx(values_N.mean(), abs=0.005)
    assert drawn_BRK[:, 0, 0].std() == pytest.approx(values_N.std() / 20, rel=0.1)


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_over_seeds_and_images_covers_the_truth(seeds):
    """Values with a seed's and an image's share of their own, truth 0. Images alone cover it far too rarely."""
    rng, covered, by_images = np.random.default_rng(seeds), 0, 0
    for trial in range(400):
        values_RN = rng.normal(size=(seeds, 1)) * 0.1 + rng.normal(size=50) * 0.7 + rng.normal(size=(seeds, 50)) * 0.1
        drawn_BR = bootstrap_means(values_RN[:, None], 300, trial)[..., 0]
        low, high = interval(over_seeds(drawn_BR, trial))
        covered += low < 0 < high
        low, high = interval(drawn_BR.mean(1))
        by_images += low < 0 < high
    assert 0.93 < covered / 400 < 0.995 and by_images / 400 < 0.93


def test_one_seed_leaves_the_interval_of_the_images():
    drawn_B1 = bootstrap_means(np.random.default_rng(0).normal(size=(1, 1, 40)), 50)[..., 0]
    assert (over_seeds(drawn_B1) == drawn_B1[:, 0]).all()


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]
