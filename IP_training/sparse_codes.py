"""Non-negative sparse codes of representations in a given dictionary."""

from __future__ import annotations

import warnings

import torch

from iis.runtime import UserError

ENTRIES = 2**22  # codes solved at once: 32 MiB for each of the arrays below
CHECK_EVERY = 10  # steps
MOST_STEPS = 20_000
GAP = 1e-9  # duality gap, relative to the row's ‖x‖² / 2, at which `fista` leaves a row
TOLERANCE = 1e-7  # of `lasso`


@torch.no_grad()
def nonnegative_codes(x_BD: torch.Tensor, dictionary_MD: torch.Tensor, penalty: float) -> torch.Tensor:
    """For each row x the codes a >= 0 that minimise ‖x − a · dictionary‖² + penalty · Σ a: (B, M) in the type of x.

    The problem of SpLiCE (Bhalla et al., NeurIPS 2024, arXiv 2402.10376), in float64. On a CPU scikit-learn solves it,
    row by row, ten times as fast as `fista`, which solves many rows at once on a GPU. Raises `UserError` as
    `check_penalty` does, and where 20,000 steps do not solve every row.
    """
    check_penalty(penalty)
    words_MD, solve = dictionary_MD.to(x_BD.device, torch.float64), lasso if x_BD.device.type == "cpu" else fista
    codes_BM = x_BD.new_zeros(len(x_BD), len(words_MD))
    used = x_BD.any(1).nonzero().flatten()  # 0 is the sum of no words
    if words_MD.any():
        for rows in used.split(max(1, ENTRIES // len(words_MD))):
            codes_BM[rows] = solve(x_BD[rows].double(), words_MD, penalty).to(codes_BM.dtype)
    return codes_BM


def check_penalty(penalty: float) -> None:
    """Raise `UserError` for a penalty that is not above 0 and finite."""
    if not 0 < penalty < float("inf"):
        raise UserError(f"--penalty {penalty:g}: sparse codes need a finite penalty above 0")


def unsolved(count: int) -> UserError:
    """What both solvers raise where `count` rows are not solved."""
    return UserError(f"the codes of {count} representations are not found in {MOST_STEPS} steps: raise --penalty, or "
                     "leave out words that mean nearly the same")


def lasso(x_BD: torch.Tensor, words_MD: torch.Tensor, penalty: float) -> torch.Tensor:
    """Codes (B, M) by scikit-learn's Lasso, coordinate descent; its objective is ours over 2 D."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso
    from threadpoolctl import threadpool_limits

    model = Lasso(penalty / (2 * x_BD.shape[1]), fit_intercept=False, positive=True, precompute=True, tol=TOLERANCE,
                  max_iter=MOST_STEPS)
    with threadpool_limits(1), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(words_MD.numpy().T, x_BD.numpy().T)
    if failed := sum(issubclass(one.category, ConvergenceWarning) for one in warned):
        raise unsolved(failed)
    return torch.from_numpy(model.coef_).reshape(len(x_BD), len(words_MD))


def fista(x_BD: torch.Tensor, words_MD: torch.Tensor, penalty: float) -> torch.Tensor:
    """Codes (B, M) by FISTA (Beck and Teboulle, 2009), restarted where the momentum points uphill (O'Donoghue and
    Candès, 2015). A row whose duality gap says that it is solved leaves the iteration."""
    penalty = penalty / 2  # of ½ ‖x − a · words‖² + penalty · Σ a
    smaller = words_MD if len(words_MD) <= words_MD.shape[1] else words_MD.T
    step = 1 / float(torch.linalg.eigvalsh(smaller @ smaller.T)[-1])
    gram_MM = words_MD @ words_MD.T if len(words_MD) <= 2 * words_MD.shape[1] else None

    def times_gram(a_BM: torch.Tensor) -> torch.Tensor:
        return a_BM @ gram_MM if gram_MM is not None else a_BM @ words_MD @ words_MD.T

    done_BM, left = x_BD.new_zeros(len(x_BD), len(words_MD)), torch.arange(len(x_BD), device=x_BD.device)
    product_BM, squares_B = x_BD @ words_MD.T, x_BD.square().sum(1)
    a_BM, ahead_BM, momentum_B1 = done_BM.clone(), done_BM.clone(), x_BD.new_ones(len(x_BD), 1)
    for count in range(MOST_STEPS + 1):
        if count % CHECK_EVERY == 0:
            solved = gap(a_BM, product_BM, times_gram(a_BM), squares_B, penalty) <= GAP * squares_B / 2
            done_BM[left[solved]] = a_BM[solved]
            left, product_BM, squares_B, a_BM, ahead_BM, momentum_B1 = (
                part[~solved] for part in (left, product_BM, squares_B, a_BM, ahead_BM, momentum_B1))
            if not len(left):
                return done_BM
        next_BM = (ahead_BM - step * (times_gram(ahead_BM) - product_BM + penalty)).clamp_min(0)
        change_BM = next_BM - a_BM
        uphill_B1 = ((ahead_BM - next_BM) * change_BM).sum(1, keepdim=True) > 0
        momentum_B1 = torch.where(uphill_B1, 1.0, momentum_B1)
        following_B1 = (1 + (1 + 4 * momentum_B1.square()).sqrt()) / 2
        ahead_BM = next_BM + (momentum_B1 - 1) / following_B1 * change_BM
        a_BM, momentum_B1 = next_BM, following_B1
    raise unsolved(len(left))


def gap(a_BM: torch.Tensor, product_BM: torch.Tensor, gram_a_BM: torch.Tensor, squares_B: torch.Tensor,
        penalty: float) -> torch.Tensor:
    """Duality gap of each row, (B,): how far its objective is from the least one, at most.

    The dual point is the residual x − a · words, made smaller until no word has a product with it above the penalty.
    """
    with_x_B = squares_B - (a_BM * product_BM).sum(1)  # residual · x
    residual_B = with_x_B - (a_BM * (product_BM - gram_a_BM)).sum(1)  # ‖residual‖²
    share_B = penalty / (product_BM - gram_a_BM).amax(1).clamp_min(penalty)
    primal_B = residual_B / 2 + penalty * a_BM.sum(1)
    return primal_B - (share_B * with_x_B - share_B.square() * residual_B / 2)
