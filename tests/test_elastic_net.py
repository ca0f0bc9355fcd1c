"""The elastic net against scikit-learn, scipy and plain coordinate descent; its conditions and steps by hand."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from IP_training import elastic_net as module

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


def concepts(count=1000, columns=60, width=8):
    """Activations of far more concepts than the representation has dimensions: highly correlated, as banks are."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(count, width, generator=generator) * torch.linspace(2, 0.2, width)
    bank = torch.nn.functional.normalize(torch.randn(columns, width, generator=generator), dim=1)
    logits = h @ torch.randn(width, CLASSES, generator=generator)
    y = (logits + 3 * torch.randn(count, CLASSES, generator=generator)).argmax(1)
    x = h @ bank.T + 0.1 * torch.randn(count, columns, generator=generator)
    return (x - x.mean(0)) / x.std(0), y


def optimum(x, y, lam, alpha=0.99):
    """The least objective by scipy: W = P − Q with P, Q ≥ 0 is smooth."""
    x, onehot, (count, columns) = x.double().numpy(), np.eye(CLASSES)[y], x.shape
    size = CLASSES * columns

    def value_and_slope(point):
        P, Q = (point[i * size:(i + 1) * size].reshape(CLASSES, columns) for i in range(2))
        logits = x @ (P - Q).T + point[2 * size:]
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        residual = (np.exp(log_p) - onehot) / count
        ridge = (1 - alpha) * lam * (P - Q)
        slope = residual.T @ x + ridge
        penalty = lam * alpha * (P + Q).sum() + ((1 - alpha) / 2 * lam * (P - Q) ** 2).sum()
        return (-(log_p * onehot).sum() / count + penalty,
                np.concatenate([(slope + lam * alpha).ravel(), (lam * alpha - slope).ravel(), residual.sum(0)]))

    found = minimize(value_and_slope, np.zeros(2 * size + CLASSES), jac=True, method="L-BFGS-B",
                     bounds=[(0, None)] * (2 * size) + [(None, None)] * CLASSES,
                     options={"maxiter": 3000, "ftol": 1e-13})
    return found.fun


def conditions(x, y, fit, lam, alpha=0.99):
    """`violation` of a fit, with the gradient by autograd."""
    W, b = fit.W_CM.double().requires_grad_(), fit.b_C.double().requires_grad_()
    torch.nn.functional.cross_entropy(x.double() @ W.T + b, y).backward()
    rows = [torch.cat([a.T, c[None]]).detach().numpy() for a, c in ((W.grad, b.grad), (W, b))]
    return module.violation(*rows, lam, alpha)


@pytest.mark.parametrize("alpha", [0.99, 0.5])
def test_equals_scikit_learn(alpha):
    x, y = problem()
    ours = module.fit_elastic_net(x, y, CLASSES, LAM, alpha, n_iters=4000, tolerance=1e-6)
    theirs = LogisticRegression(solver="saga", C=1 / (len(x) * LAM), l1_ratio=alpha, tol=1e-9, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs.fit(x.numpy(), y.numpy())
    W, b = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    assert ours.objective == pytest.approx(module.objective(x, y, W, b, LAM, alpha), rel=1e-6)
    assert ours.passes < 4000 and ours.converged
    zeros = W.abs() < 1e-6
    assert torch.equal(ours.W_CM == 0, zeros) and 5 < int(zeros.sum()) < zeros.numel() - 5
    torch.testing.assert_close(ours.W_CM, W, rtol=0, atol=1e-4)
    single = module.fit_elastic_net(x.float(), y, CLASSES, LAM, alpha)
    assert single.objective == pytest.approx(ours.objective, rel=1e-4) and single.W_CM.dtype == torch.float32


def test_more_passes_are_never_worse_on_correlated_concepts():
    """Without its safeguards the momentum ends at an objective of 5.4 after 300 passes here."""
    x, y = concepts()
    values = [module.fit_elastic_net(x, y, CLASSES, 0.0007, n_iters=count).objective for count in (20, 80, 300)]
    assert values == sorted(values, reverse=True)
    least = optimum(x, y, 0.0007)
    assert least - 1e-6 <= values[-1] <= 1.001 * least


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_converged_is_true_exactly_where_the_conditions_hold(tolerance):
    x, y = problem()
    for n_iters in (1, 2, 5, 10, 1000):
        fit = module.fit_elastic_net(x, y, CLASSES, LAM, n_iters=n_iters, tolerance=tolerance)
        assert fit.passes <= n_iters
        if fit.converged:
            assert conditions(x, y, fit, LAM) <= 1.0001 * tolerance * LAM * 0.99
        else:
            assert fit.passes == n_iters
    assert fit.converged and not module.fit_elastic_net(x, y, CLASSES, LAM, n_iters=1, tolerance=tolerance).converged


def test_path_starts_empty_grows_and_equals_cold_starts():
    x, y = problem()
    top = module.largest_lam(x, y, CLASSES)
    lams = [1.001 * top, 0.97 * top, 0.3 * top, 0.1 * top]
    path = list(module.elastic_net_path(x, y, CLASSES, lams, n_iters=2000, tolerance=1e-4))
    counts = [int((fit.W_CM != 0).sum()) for _, fit in path]
    assert [lam for lam, _ in path] == lams and counts[0] == 0 < counts[1] < counts[2] < counts[3]
    for lam, fit in path[1:]:
        cold = module.fit_elastic_net(x, y, CLASSES, lam, n_iters=2000, tolerance=1e-4)
        assert fit.objective == pytest.approx(cold.objective, rel=1e-6)
    assert path[-1][1].objective == pytest.approx(optimum(x, y, lams[-1]), rel=1e-5)


def test_parts_of_the_data_and_a_class_without_images_change_nothing(monkeypatch):
    x, y = problem()
    whole = module.fit_elastic_net(x, y, CLASSES, LAM), module.half_gram(x), module.largest_lam(x, y, CLASSES)
    monkeypatch.setattr(module, "ROWS", 50)
    parts = module.fit_elastic_net(x, y, CLASSES, LAM), module.half_gram(x), module.largest_lam(x, y, CLASSES)
    torch.testing.assert_close(whole[0].W_CM, parts[0].W_CM)
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-12)
    assert whole[2] == pytest.approx(parts[2])
    absent = module.fit_elastic_net(x, y, CLASSES + 1, LAM)
    assert torch.isfinite(absent.b_C).all() and not absent.W_CM[-1].any()


def test_violation_by_hand():
    W = np.array([[1.0], [0.0], [5.0]])  # the last row is the bias
    # alpha 0.5, lam 0.2: at W = 1 the gradient should be −0.1·1 − 0.1·1 = −0.2; at 0 it may be up to 0.1.
    for gradient, expected in (([-0.2, 0.1, 0.0], 0), ([-0.25, 0.1, 0.0], 0.05), ([-0.2, -0.4, 0.0], 0.3),
                               ([-0.2, 0.0, 0.07], 0.07)):
        assert module.violation(np.array(gradient)[:, None], W, 0.2, 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_are_plain_cyclic_coordinate_descent(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    factors, now, gradient = rng.normal(size=(40, 31)), rng.normal(size=(31, 3)), rng.normal(size=(31, 3))
    curvature, lam, alpha, plain = factors.T @ factors / 40, 0.3, 0.9, now.copy()
    for _ in range(4):
        for k in range(31):  # the last is the bias, without a penalty
            slope = gradient[k] + curvature[k] @ (plain - now)
            target = curvature[k, k] * plain[k] - slope
            if k == 30:
                plain[k] = target / curvature[k, k]
            else:
                shrunk = np.sign(target) * np.maximum(np.abs(target) - lam * alpha, 0)
                plain[k] = shrunk / (curvature[k, k] + lam * (1 - alpha))
    ours = module.minimise_model(curvature, now, gradient, lam, alpha, 0.0, sweeps=4)
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-12)
    assert (ours[:-1] == 0).any() and (plain == 0).sum() == (ours == 0).sum()
