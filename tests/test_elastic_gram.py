"""The path's solver against scikit-learn; its optimality conditions by hand."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_elastic_net import CLASSES, LAM, problem

from IP_training.elastic_gram import gram_path, half_gram, minimise_model, violation
from IP_training.elastic_net import largest_lam, objective


@pytest.mark.parametrize("alpha", [0.99, 0.5])
def test_equals_scikit_learn(alpha):
    x, y = problem()
    [(_, ours)] = gram_path(x, y, CLASSES, [LAM], alpha, n_iters=2000, tolerance=1e-5)
    theirs = LogisticRegression(solver="saga", C=1 / (len(x) * LAM), l1_ratio=alpha, tol=1e-9, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs.fit(x.numpy(), y.numpy())
    W, b = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    assert ours.objective == pytest.approx(objective(x, y, W, b, LAM, alpha), rel=1e-6)
    assert ours.epochs < 2000
    assert torch.equal(ours.W_CM != 0, W.abs() > 1e-6)
    torch.testing.assert_close(ours.W_CM, W, rtol=0, atol=1e-4)


def test_path_starts_at_zero_and_grows():
    x, y = problem()
    top = largest_lam(x, y, CLASSES)
    counts = [int((fit.W_CM != 0).sum()) for _, fit in gram_path(x, y, CLASSES, [1.001 * top, 0.9 * top, 0.1 * top])]
    assert counts[0] == 0 < counts[1] < counts[2]


def test_half_gram_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    expected = [[10, 2, 4], [2, 4, 2], [4, 2, 2]]  # (x, 1)ᵀ(x, 1), over 2N = 4
    np.testing.assert_allclose(half_gram(x), np.array(expected) / 4, atol=2e-6)


def test_violation_by_hand():
    W = np.array([[1.0], [0.0], [5.0]])  # the last row is the bias
    # alpha 0.5, lam 0.2: at W = 1 the gradient should be −0.1·1 − 0.1·1 = −0.2; at 0 it may be up to 0.1.
    assert violation(np.array([[-0.2], [0.1], [0.0]]), W, 0.2, 0.5) == pytest.approx(0)
    assert violation(np.array([[-0.25], [0.1], [0.0]]), W, 0.2, 0.5) == pytest.approx(0.05)
    assert violation(np.array([[-0.2], [-0.4], [0.0]]), W, 0.2, 0.5) == pytest.approx(0.3)
    assert violation(np.array([[-0.2], [0.0], [0.07]]), W, 0.2, 0.5) == pytest.approx(0.07)


def test_model_step_by_hand():
    # Curvature 2 and 1: the weight goes from 1 to soft(2·1 − 0.6, 0.1)/2 = 0.65, the bias by −3.
    moved = minimise_model(np.diag([2.0, 1.0]), np.array([[1.0], [0.0]]), np.array([[0.6], [3.0]]), 0.1, 1.0, 1e-12)
    np.testing.assert_allclose(moved, [[0.65], [-3.0]])
