"""The elastic net against scikit-learn, scipy and plain coordinate descent; its conditions and steps by hand."""

import warnings

import numpy as np
import pytest
import scipy.linalg
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
    """The largest violation of a fit, with the gradient by autograd."""
    W, b = fit.W_CM.double().requires_grad_(), fit.b_C.double().requires_grad_()
    torch.nn.functional.cross_entropy(x.double() @ W.T + b, y).backward()
    gradient, U = (torch.cat([a, c[:, None]], 1).detach() for a, c in ((W.grad, b.grad), (W, b)))
    return float(module.violations(gradient, U, lam, alpha).max())


def objective(x, y, W, b, lam, alpha=0.99):
    """Mean CE + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²), in nats, at any W and b."""
    return float(torch.nn.functional.cross_entropy(x @ W.T + b, y)) + lam * module.penalty(W.double(), alpha)


@pytest.mark.parametrize("alpha", [0.99, 0.5])
def test_equals_scikit_learn(alpha):
    x, y = problem()
    ours = module.fit_elastic_net(x, y, CLASSES, LAM, alpha, n_iters=4000, tolerance=1e-6)
    theirs = LogisticRegression(solver="saga", C=1 / (len(x) * LAM), l1_ratio=alpha, tol=1e-9, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs.fit(x.numpy(), y.numpy())
    W, b = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    assert ours.objective == pytest.approx(objective(x, y, W, b, LAM, alpha), rel=1e-6)
    assert ours.passes < 4000 and ours.converged
    zeros = W.abs() < 1e-6
    assert torch.equal(ours.W_CM == 0, zeros) and 5 < int(zeros.sum()) < zeros.numel() - 5
    torch.testing.assert_close(ours.W_CM, W, rtol=0, atol=1e-4)
    single = module.fit_elastic_net(x.float(), y, CLASSES, LAM, alpha)
    assert single.objective == pytest.approx(ours.objective, rel=1e-4) and single.W_CM.dtype == torch.float32


def test_more_passes_are_never_worse_on_correlated_concepts():
    """Without a safeguard accelerated steps end at an objective of 5.4 after 300 passes here."""
    x, y = concepts()
    fits = [module.fit_elastic_net(x, y, CLASSES, 0.0007, n_iters=count, tolerance=1e-4) for count in (5, 20, 80, 900)]
    values = [fit.objective for fit in fits]
    assert values == sorted(values, reverse=True) and fits[-1].converged
    least = optimum(x, y, 0.0007)
    assert least - 1e-6 <= values[-1] <= least * (1 + 1e-5)


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
    top = module.ElasticNet(x, y, CLASSES).largest_lam()
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
    whole = module.fit_elastic_net(x, y, CLASSES, LAM), module.ElasticNet(x, y, CLASSES).largest_lam()
    monkeypatch.setattr(module, "ROWS", 50)
    parts = module.fit_elastic_net(x, y, CLASSES, LAM), module.ElasticNet(x, y, CLASSES).largest_lam()
    torch.testing.assert_close(whole[0].W_CM, parts[0].W_CM)
    assert whole[1] == pytest.approx(parts[1])
    monkeypatch.setattr(module, "METRIC_ROWS", 60)  # a rougher metric leads to the same solution
    rough = module.fit_elastic_net(x, y, CLASSES, LAM, tolerance=1e-6)
    exact = module.fit_elastic_net(x, y, CLASSES, LAM, tolerance=1e-6)
    assert rough.converged and torch.equal(rough.W_CM != 0, exact.W_CM != 0)
    absent = module.fit_elastic_net(x, y, CLASSES + 1, LAM)
    assert torch.isfinite(absent.b_C).all() and not absent.W_CM[-1].any()


@pytest.mark.parametrize("alpha", [0.99, 0.5])
def test_steps_for_many_classes_lead_to_the_same_solution(monkeypatch, alpha):
    """Where the terms between classes are too many to be written down, steps by class and their mean."""
    x, y = problem()
    exact = module.fit_elastic_net(x, y, CLASSES, LAM, alpha, tolerance=1e-6)
    monkeypatch.setattr(module, "DENSE", 0)
    monkeypatch.setattr(module, "PRECISE", 0)
    other = module.fit_elastic_net(x, y, CLASSES, LAM, alpha, tolerance=1e-6)
    single = module.fit_elastic_net(x.float(), y, CLASSES, LAM, alpha, tolerance=1e-4)
    assert other.converged and single.converged and torch.equal(other.W_CM != 0, exact.W_CM != 0)
    torch.testing.assert_close(other.W_CM, exact.W_CM, rtol=0, atol=1e-5)
    torch.testing.assert_close(single.W_CM.double(), exact.W_CM, rtol=0, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.99, 0.5])
def test_steps_by_products_lead_to_the_same_solution(monkeypatch, alpha):
    """Where the model's matrix is not written down: conjugate gradients on the support."""
    x, y = problem()
    exact = module.fit_elastic_net(x, y, CLASSES, LAM, alpha, tolerance=1e-6)
    monkeypatch.setattr(module, "DENSE", 0)
    net = module.ElasticNet(x, y, CLASSES, alpha)
    for start in (None, net.solve(0.9 * LAM, tolerance=1e-3), net.solve(2 * LAM, tolerance=1e-3)):
        other = net.solve(LAM, start, tolerance=1e-6)
        assert other.converged and torch.equal(other.W_CM != 0, exact.W_CM != 0) and other.passes <= 12
        torch.testing.assert_close(other.W_CM, exact.W_CM, rtol=0, atol=1e-5)
    twice = torch.cat([x, x[:, :5]], 1).float()  # linearly dependent columns
    other = module.fit_elastic_net(twice, y, CLASSES, LAM, alpha)
    assert other.converged and conditions(twice, y, other, LAM, alpha) <= 1.01 * 0.01 * LAM * alpha


def test_conjugate_gradients_against_scipy():
    """Exact blocks of three classes of four, which the terms between classes couple; a bad one only slows it down."""
    factors = np.random.default_rng(0).normal(size=(40, 12))
    matrix = torch.from_numpy(factors.T @ factors / 40)
    right, calls = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4), []

    def product(V):
        calls.append(1)
        return (matrix @ V.flatten()).view(3, 4)

    expected = scipy.linalg.solve(matrix.numpy(), right.flatten().numpy())
    blocks = torch.stack([matrix[4 * c:4 * c + 4, 4 * c:4 * c + 4].inverse() for c in range(3)])
    for inverse in (blocks, torch.eye(4, dtype=torch.float64).expand(3, 4, 4)):
        calls.clear()
        found = module.conjugate_gradients(product, right, inverse, 1e-9)
        np.testing.assert_allclose(found.flatten(), expected, atol=1e-7)
        assert len(calls) <= 13
    assert module.conjugate_gradients(product, right, blocks, 1e-9, steps=0).tolist() == torch.zeros(3, 4).tolist()


def test_the_model_of_all_classes_is_minimised_against_scipy():
    rng = np.random.default_rng(0)
    factors, start, slope = rng.normal(size=(30, 25)), rng.normal(size=25), 3 * rng.normal(size=25)
    curvature, threshold = factors.T @ factors / 30, np.append(np.full(23, 3.0), [0.0, 0.0])
    ours = module.minimise_model(curvature, slope, start, threshold, 1e-10)

    def value_and_slope(halves):
        step = halves[:25] - halves[25:] - start
        now = slope + curvature @ step
        return (slope @ step + step @ curvature @ step / 2 + threshold @ (halves[:25] + halves[25:]),
                np.concatenate([now + threshold, threshold - now]))

    found = minimize(value_and_slope, np.ones(50), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 50,
                     options={"maxiter": 5000, "maxfun": 50000, "ftol": 1e-15, "gtol": 1e-10}).x
    np.testing.assert_allclose(ours, found[:25] - found[25:], atol=1e-4)
    assert 3 < (ours == 0).sum() < 23


def test_violations_by_hand():
    U = torch.tensor([[1.0, 0.0, 5.0]], dtype=torch.float64)  # the last column is the bias
    # alpha 0.5, lam 0.2: at W = 1 the gradient should be −0.1·1 − 0.1·1 = −0.2; at 0 it may be up to 0.1.
    for gradient, expected in (([-0.2, 0.1, 0.0], [0, 0, 0]), ([-0.25, 0.1, 0.0], [0.05, 0, 0]),
                               ([-0.2, -0.4, 0.0], [0, 0.3, 0]), ([-0.2, 0.0, 0.07], [0, -0.1, 0.07])):
        found = module.violations(torch.tensor([gradient], dtype=torch.float64), U, 0.2, 0.5)
        assert found.tolist() == [pytest.approx(expected)]


def test_the_model_is_minimised_by_plain_cyclic_coordinate_descent():
    rng = np.random.default_rng(0)
    factors, now, gradient = rng.normal(size=(3, 40, 31)), rng.normal(size=(3, 31)), rng.normal(size=(3, 31))
    lam, alpha, plain = 0.3, 0.9, now.copy()
    curvature = np.einsum("cnl,cnm->clm", factors, factors) / 40
    for _ in range(4):
        for c, k in np.ndindex(3, 31):  # the last is the bias, without a penalty
            slope = gradient[c, k] + curvature[c, k] @ (plain[c] - now[c])
            target = curvature[c, k, k] * plain[c, k] - slope
            if k == 30:
                plain[c, k] = target / curvature[c, k, k]
            else:
                shrunk = np.sign(target) * max(abs(target) - lam * alpha, 0)
                plain[c, k] = shrunk / (curvature[c, k, k] + lam * (1 - alpha))
    ridge = lam * (1 - alpha) * np.diag([1.0] * 30 + [0.0])
    model = map(torch.from_numpy, (curvature + ridge, now, gradient))
    ours = module.minimise_by_class(*model, lam, alpha, 0.0, sweeps=4)
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-12)
    assert (ours[:, :-1] == 0).any() and (plain == 0).sum() == (ours == 0).sum()


def test_the_curvature_is_that_of_autograd():
    """All terms, and the metric within each class."""
    x, y = problem(60, 8)
    net = module.ElasticNet(x, y, CLASSES, 0.9)
    generator = torch.Generator().manual_seed(1)
    U = torch.randn(CLASSES, 9, generator=generator, dtype=torch.float64)

    def loss(U):
        return torch.nn.functional.cross_entropy(x @ U[:, :-1].T + U[:, -1], y) + 0.05 * U[:, :-1].square().sum()

    point = net._at(U, 1.0)
    every = torch.ones_like(U, dtype=torch.bool)
    columns, curvature = net._metric(point, 1.0, every)
    assert columns.tolist() == [list(range(9))] * CLASSES
    hessian = torch.autograd.functional.hessian(loss, U)
    ridge = 0.1 * torch.diag(torch.tensor(([1.0] * 8 + [0.0]) * CLASSES, dtype=torch.float64))
    flat = hessian.reshape(CLASSES * 9, -1) - ridge
    torch.testing.assert_close(net._hessian(point, every), flat)
    own = torch.stack([hessian[c, :, c] for c in range(CLASSES)])
    torch.testing.assert_close(curvature[:, :8, :8], own[:, :8, :8], rtol=2e-5, atol=0)
    torch.testing.assert_close(curvature[:, 8, 8], own[:, 8, 8] + 0.1, rtol=2e-5, atol=0)  # a ridge on the bias too
