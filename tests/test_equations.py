"""The equations and their spread, against numbers worked out by hand, numpy and plain loops."""

import numpy as np
import pytest

from iis.equations import (
    above_ceiling,
    accuracy_retention,
    area,
    chance_corrected,
    near_ceiling,
    require_ratios,
    saturated,
    span,
    standard_error,
    too_close_to_chance,
)
from iis.grid import DENSE, RATIOS, Cell, check_ratios, dropped_count, kept_count
from iis.runtime import UserError


def test_area_by_hand():
    assert span(RATIOS) == 0.98 and area(RATIOS, np.ones(8)) == pytest.approx(0.98)  # a curve that never falls
    assert area(RATIOS, 1 - np.array(RATIOS) / 0.98) == pytest.approx(0.49)  # a straight line to zero
    # trapezoids: 0.5 * (1 + 0.8) / 2 = 0.45 and 0.4 * (0.8 + 0.2) / 2 = 0.2; and twice as high
    np.testing.assert_allclose(area([0, 0.5, 0.9], [[1, 0.8, 0.2], [2, 1.6, 0.4]]), [0.65, 1.3])


def test_retention_divides_each_seed_by_its_own_dense_head():
    np.testing.assert_allclose(accuracy_retention([[0.4, 0.2], [0.6, 0.3]], [0.8, 0.6]), [[0.5, 0.25], [1.0, 0.5]])
    np.testing.assert_allclose(chance_corrected([0.5, 0.1], 0.9, 0.1), [0.5, 0.0])
    np.testing.assert_allclose(chance_corrected([[0.5], [0.5]], [0.9, 0.5], 0.1), [[0.5], [1.0]])


@pytest.mark.filterwarnings("error")
def test_what_is_divided_by_nothing_is_undefined_without_a_word_of_numpys():
    np.testing.assert_array_equal(accuracy_retention([[0.4, 0.0], [0.6, 0.3]], [0.0, 0.6]), [[np.nan] * 2, [1.0, 0.5]])
    # 0.1 + 0.2 is 0.30000000000000004: at chance but for rounding
    np.testing.assert_array_equal(chance_corrected([[0.5], [0.5]], [0.1 + 0.2, 0.8], 0.3), [[np.nan], [0.2 / 0.5]])


def test_a_missing_ratio_is_named_not_bridged():
    with pytest.raises(UserError, match=r"here lacks the sparsity ratio\(s\) 0.7, 0.98, so there is no IIS"):
        require_ratios([ratio for ratio in RATIOS if ratio not in (0.7, 0.98)], where="here")
    require_ratios([0.1 + 0.2, *RATIOS])


@pytest.mark.parametrize("num_concepts, kept", [(200, [200, 180, 140, 100, 60, 20, 10, 4]),
                                                (16, [16, 15, 12, 8, 5, 2, 1, 1]), (90, [90, 81, 63, 45, 27, 9, 5, 2])])
def test_kept_counts(num_concepts, kept):
    # 90 · 0.7 is 62.999… in floats; 63 are dropped all the same, so 27 stay.
    assert [kept_count(num_concepts, ratio) for ratio in RATIOS] == kept
    assert all(kept_count(num_concepts, ratio) + dropped_count(num_concepts, ratio) == num_concepts for ratio in RATIOS)


def test_which_ratios_a_grid_may_have():
    assert check_ratios([0.5, 0, 0.5]) == (0.0, 0.5) and Cell(0, DENSE, 0.1).dense and not Cell(0, 0.0, 0.1).dense
    for ratio in (1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="outside"):
            check_ratios([0.5, ratio])


def test_chance_guard_uses_the_larger_margin():
    assert standard_error(0.5, 100) == pytest.approx(0.05) and standard_error(1.0, 100) == 0
    assert too_close_to_chance(0.54, 0.5, 10**6)  # 4 points: under 5
    assert not too_close_to_chance(0.56, 0.5, 10**6)
    assert too_close_to_chance(0.60, 0.5, 100)  # 10 points, but 3 standard errors are 14.7


def test_saturation_needs_every_ratio_near_one():
    assert saturated([0.99, 1.01, 1.0], [0.01, 0.02, 0.0]) and not saturated([0.99, 1.01, 1.0], [0.01, 0.009, 0.0])
    assert near_ceiling(0.97, 0.98, 0.01) and not near_ceiling(0.97, 0.98, 0.0099)
    assert not near_ceiling(0.981, 0.98, 0.01) and above_ceiling(0.981, 0.98)  # above it is not near it
    touching = area(RATIOS, np.full(8, 1 + 1e-16))  # 0.98 but for rounding
    assert near_ceiling(touching, span(RATIOS), 0.0) and not above_ceiling(touching, span(RATIOS))
