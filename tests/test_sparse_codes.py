"""Non-negative sparse codes against scikit-learn's Lasso, and what they must do by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from iis.runtime import UserError
from IP_training import sparse_codes
from IP_training.sparse_codes import fista, lasso, nonnegative_codes


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random rows of length 1 with a direction in common, as words and images of CLIP have, float64."""
    generator = torch.Generator().manual_seed(seed)
    common = 0.5 * torch.randn(1, width, generator=generator)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator) + common, dim=1).double()


@pytest.mark.parametrize("solve", [lasso, fista, nonnegative_codes])
@pytest.mark.parametrize("words, width, penalty", [(40, 16, 0.25), (40, 16, 0.01), (10, 16, 0.25), (10, 16, 0.01)])
def test_codes_are_those_of_scikit_learns_lasso_row_by_row(solve, words, width, penalty):
    x_BD, words_MD = unit(15, width, 1), unit(words, width, 2)
    found = solve(x_BD, words_MD, penalty)
    for x, codes in zip(x_BD.numpy(), found.numpy(), strict=True):
        theirs = Lasso(penalty / (2 * width), fit_intercept=False, positive=True, tol=1e-12, max_iter=100_000)
        np.testing.assert_allclose(codes, theirs.fit(words_MD.numpy().T, x).coef_, atol=1e-4)
    assert found.min() >= 0 and 0 < (found > 0).sum(1).double().mean() < words / 2


@pytest.mark.parametrize("solve", [lasso, fista])
def test_words_at_right_angles_by_hand(solve):
    """Each code is then x minus half the penalty, and at least 0."""
    codes = solve(torch.tensor([[0.5, -0.5, 0.1, 3.0]]).double(), torch.eye(4)[:3].double(), 0.3)
    torch.testing.assert_close(codes, torch.tensor([[0.35, 0.0, 0.0]]).double(), atol=1e-6, rtol=0)


def test_many_rows_are_solved_in_parts_and_nothing_has_no_words(monkeypatch):
    x_BD, words_MD = unit(15, 16, 1).float(), unit(10, 16, 2).float()
    x_BD[4], words_MD[3] = 0, 0
    whole = nonnegative_codes(x_BD, words_MD, 0.1)
    monkeypatch.setattr(sparse_codes, "ENTRIES", 40)  # four rows at a time
    torch.testing.assert_close(nonnegative_codes(x_BD, words_MD, 0.1), whole, atol=1e-6, rtol=0)
    assert whole.dtype == torch.float32 and not whole[4].any() and not whole[:, 3].any() and whole.any(1).sum() == 14
    assert not nonnegative_codes(x_BD, torch.zeros(10, 16), 0.1).any()


@pytest.mark.parametrize("solve", [lasso, fista])
def test_what_cannot_be_solved_is_refused(monkeypatch, solve):
    for penalty in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--penalty"):
            nonnegative_codes(torch.ones(1, 2), torch.eye(2), penalty)
    monkeypatch.setattr(sparse_codes, "MOST_STEPS", 1)
    with pytest.raises(UserError, match="15 representations"):
        solve(unit(15, 16, 1), unit(40, 16, 2), 0.01)
