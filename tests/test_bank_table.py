"""Effective rank and accuracy at an equal number of kept concepts, by hand."""

import numpy as np
import pytest

from reproduction.bank_table import accuracy_at, effective_rank


def test_effective_rank_by_hand():
    assert effective_rank(np.eye(4)) == pytest.approx(4)
    assert effective_rank(np.ones((5, 3))) == pytest.approx(1)
    # singular values 2 and 1: shares 2/3 and 1/3, entropy 0.6365
    assert effective_rank(np.diag([2.0, 1.0])) == pytest.approx(np.exp(2 / 3 * np.log(1.5) + np.log(3) / 3))


def test_accuracy_at_kept_is_linear_in_log_k():
    counts, accuracies = [16, 4, 1, 1], np.array([0.9, 0.7, 0.3, 0.3])
    assert accuracy_at(4, counts, accuracies) == pytest.approx(0.7)
    assert accuracy_at(2, counts, accuracies) == pytest.approx(0.5)  # halfway between 1 and 4 in log k
    assert accuracy_at(8, counts, accuracies) == pytest.approx(0.8)
    assert np.isnan(accuracy_at(32, counts, accuracies))
