"""The elastic-net layer against scikit-learn, its step against SAGA with stored gradients, and its path."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from IP_training.elastic_net import (
    Saga,
    _start,
    elastic_net_path,
    fit_elastic_net,
    largest_lam,
    objective,
    residuals,
    shrink_,
    step_size,
)

CLASSES, LAM = 4, 0.02


def problem(count=240, columns=15, dtype=torch.float64):
    """Standardised columns, of which six matter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, columns, generator=generator, dtype=dtype)
    x = x + 0.5 * x[:, :1]  # correlated
    truth = torch.zeros(CLASSES, columns, dtype=dtype)
    truth[:, :6] = torch.randn(CLASSES, 6, generator=generator, dtype=dtype)
    y = (x @ truth.T + torch.randn(count, CLASSES, generator=generator, dtype=dtype)).argmax(1)
    return (x - x.mean(0)) / x.std(0), y


def test_objective_by_hand():
    # Two classes, logits (1·2, 0) and bias 0: CE = log(1 + e^-2) for y = 0; penalty 0.1·(0.99·1 + 0.005·1).
    value = objective(torch.tensor([[2.0]]), torch.tensor([0]), torch.tensor([[1.0], [0.0]]), torch.zeros(2), 0.1)
    assert value == pytest.approx(np.log(1 + np.exp(-2)) + 0.1 * 0.995)


def test_shrink_by_hand():
    assert shrink_(torch.tensor([-2.0, -0.5, 0.0, 0.3, 1.0]), 0.5).tolist() == [-1.5, 0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("alpha", [0.99, 0.5])
def test_equals_scikit_learn(alpha):
    x, y = problem()
    ours = fit_elastic_net(x, y, CLASSES, LAM, alpha, n_iters=3000, batch_size=32, tolerance=1e-9)
    theirs = LogisticRegression(solver="saga", C=1 / (len(x) * LAM), l1_ratio=alpha, tol=1e-9, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs.fit(x.numpy(), y.numpy())
    W, b = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    assert ours.objective == pytest.approx(objective(x, y, W, b, LAM, alpha), rel=1e-3)
    assert ours.epochs < 3000
    zeros = W.abs() < 1e-6
    assert torch.equal(ours.W_CM.abs() < 1e-6, zeros) and 5 < int(zeros.sum()) < zeros.numel() - 5
    torch.testing.assert_close(ours.W_CM, W, rtol=0, atol=1e-5)


def test_float32_in_default_batches_comes_as_near():
    x, y = problem()
    exact = fit_elastic_net(x, y, CLASSES, LAM, n_iters=3000, batch_size=32, tolerance=1e-9)
    single = fit_elastic_net(x.float(), y, CLASSES, LAM)
    assert single.objective == pytest.approx(exact.objective, rel=1e-3)
    assert single.W_CM.dtype == torch.float32


def test_a_step_equals_saga_with_a_table_of_gradients():
    x, y = problem(40, 6)
    generator = torch.Generator().manual_seed(1)
    W, b = torch.randn(CLASSES, 6, generator=generator).double(), torch.randn(CLASSES, generator=generator).double()
    state = _start(x, y, 0.5 * W, b)  # the table is of another point
    state = Saga(W.clone(), b.clone(), state.residual_NC, state.mean_W_CM, state.mean_b_C)
    x1 = torch.nn.functional.pad(x, (0, 1), value=1.0)
    table = torch.stack([torch.outer(residual, row) for residual, row in zip(state.residual_NC, x1, strict=True)])
    V = torch.cat([W, b[:, None]], 1)
    for rows in (torch.arange(8), torch.arange(4, 12)):  # the second sees rows that the first changed
        mean = table.mean(0)
        fresh = torch.stack([torch.outer((V @ x1[n]).softmax(0) - torch.eye(CLASSES)[y[n]], x1[n]) for n in rows])
        V = V - 0.1 * ((fresh - table[rows]).mean(0) + mean)
        weights = V[:, :-1].sign() * (V[:, :-1].abs() - 0.1 * LAM * 0.99).clamp_min(0) / (1 + 0.1 * LAM * 0.01)
        V = torch.cat([weights, V[:, -1:]], 1)
        table[rows] = fresh
        state.step(x[rows], y[rows], rows, 0.1, LAM, 0.99)
        torch.testing.assert_close(state.W_CM, V[:, :-1], rtol=0, atol=1e-6)
        torch.testing.assert_close(state.b_C, V[:, -1], rtol=0, atol=1e-6)
        torch.testing.assert_close(state.mean_W_CM, table.mean(0)[:, :-1], rtol=0, atol=1e-6)


def test_residuals_are_the_gradient_of_the_cross_entropy():
    x, y = problem(30, 6)
    logits = torch.randn(30, CLASSES, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, y, reduction="sum").backward()
    torch.testing.assert_close(residuals(torch.eye(30).double(), y, logits.detach().T, torch.zeros(CLASSES).double()),
                               logits.grad)


def test_step_size_at_both_ends():
    x = torch.tensor([[1.0], [-1.0], [2.0]])  # largest ‖(x, 1)‖² = 5; moments [[2, 2/3], [2/3, 1]]
    top = float(np.linalg.eigvalsh([[2, 2 / 3], [2 / 3, 1]])[-1])
    assert step_size(x, 1) == pytest.approx(2 / (3 * 5)) and step_size(x, 3) == pytest.approx(2 / (3 * top))


def test_path_starts_empty_grows_and_equals_cold_starts():
    x, y = problem()
    top = largest_lam(x, y, CLASSES)
    settings = {"n_iters": 800, "batch_size": 32, "tolerance": 1e-7}
    lams = [1.01 * top, 0.97 * top, 0.3 * top, 0.1 * top]
    path = list(elastic_net_path(x, y, CLASSES, lams, **settings))
    counts = [int((fit.W_CM != 0).sum()) for _, fit in path]
    assert [lam for lam, _ in path] == lams
    assert counts[0] == 0 and 0 < counts[1] < counts[2] < counts[3]
    cold = fit_elastic_net(x, y, CLASSES, lams[-1], **settings)
    assert path[-1][1].objective == pytest.approx(cold.objective, rel=1e-6)


def test_same_seed_same_numbers():
    x, y = problem(dtype=torch.float32)
    one, other = (fit_elastic_net(x, y, CLASSES, LAM, n_iters=5, seed=3) for _ in range(2))
    assert torch.equal(one.W_CM, other.W_CM)
