"""How sure a number is: mean and standard deviation over seeds, and a bootstrap over validation images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from iis.equations import accuracy_retention, area
from iis.runtime import numpy_rng

KEPT = 2**24  # counts, 32 MB: 1,000 resamples of up to 16,777 images stay in memory for the next ledger


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation with ddof 1; None where one value says nothing about spread."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def resampled_images(count: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of `count` images is in each of `draws` resamples: blocks (B, N) of at most 100 resamples, 40 MB
    at N = 50,000. The same for every quantity of these images, which keeps their pairing."""
    if count * draws <= KEPT:
        yield from (block_BN.astype(np.int64) for block_BN in _kept_resamples(count, draws, seed))
    else:
        yield from _drawn_resamples(count, draws, seed)


def _drawn_resamples(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    rng = numpy_rng(seed, "bootstrap", count)
    for start in range(0, draws, 100):
        yield rng.multinomial(count, np.full(count, 1 / count), size=min(100, draws - start))


@functools.lru_cache(maxsize=2)  # a table of 144 ledgers draws the same 1,000 resamples 270 times, most of its time
def _kept_resamples(count: int, draws: int, seed: int) -> list[np.ndarray]:
    return [block_BN.astype(np.uint16) for block_BN in _drawn_resamples(count, draws, seed)]


def bootstrap_iis(ratios: Sequence[float], correct_RSN: np.ndarray, dense_RN: np.ndarray, draws: int = 1000,
                  seed: int = 0) -> np.ndarray:
    """IIS of every seed in `draws` resamples of the validation images, (draws, R): of `bootstrap_retention`."""
    return area(ratios, bootstrap_retention(correct_RSN, dense_RN, draws, seed))


def bootstrap_retention(correct_RSN: np.ndarray, dense_RN: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """ARR of every seed and ratio in `draws` resamples of the validation images, (draws, R, S).

    correct_RSN: (R seeds, S ratios, N images) and dense_RN: (R, N), True where the selected head is right.
    One resample serves all heads, so that the pairing of ratios and dense head is kept. NaN where the resample holds no
    image that the seed's dense head gets right.
    """
    accuracy_BRK = bootstrap_means(np.concatenate([correct_RSN, dense_RN[:, None]], axis=1), draws, seed)
    return accuracy_retention(accuracy_BRK[..., :-1], accuracy_BRK[..., -1])


def retention_errors(ratios: Sequence[float], correct_RSN: np.ndarray, dense_RN: np.ndarray
                     ) -> tuple[np.ndarray, float]:
    """Standard errors over images of ARR, (S,), and of the IIS, both means over seeds. Shapes as
    `bootstrap_retention`, whose spread they are for many draws, without drawing.

    Predictors and dense head are paired. An image moves ARR by (correct − ARR · dense correct) / (acc_dense · N); the
    standard error is the spread over images of N times that, over √N. Two accuracies taken as independent would
    make it several times larger, because most images are right, or wrong, for both heads.
    """
    seeds, _, count = correct_RSN.shape
    influence_SN = 0.0
    for correct_SN, dense_N in zip(correct_RSN, dense_RN, strict=True):
        dense, accuracy_S1 = dense_N.mean(), correct_SN.mean(1, keepdims=True)
        influence_SN = influence_SN + (correct_SN - accuracy_S1 / dense * dense_N) / (dense * seeds)
    return influence_SN.std(1) / count ** 0.5, float(area(ratios, influence_SN.T).std() / count ** 0.5)


def bootstrap_means(values_RKN: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Means over images of K quantities of R seeds, in `draws` resamples of the N images: (draws, R, K)."""
    *shape, count = values_RKN.shape
    flat = np.reshape(values_RKN, (-1, count)).astype(np.float32).T
    means = [picks_BN.astype(np.float32) @ flat / count for picks_BN in resampled_images(count, draws, seed)]
    return np.concatenate(means).reshape(-1, *shape).astype(float)


def over_seeds(of_seeds_BR: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draws of a mean over seeds in which seeds and images vary together, (B,), from what each of R seeds has in B
    resamples of the images (hierarchical bootstrap).

    Seeds that are resampled themselves give too narrow an interval when they are few: of three, the 95 % interval is
    the range of the three and covers the truth in 75 % of cases. Their part is therefore drawn from Student's t with
    R − 1 degrees of freedom, times the standard error of the mean over seeds: all its quantiles once, in random order,
    because with few seeds its tails are long and 1000 free draws would shift the limits by a tenth. One seed says
    nothing about seeds: its interval is that of the images alone. A draw that is NaN for a seed is NaN, and no other.
    """
    from scipy import stats

    draws, seeds = of_seeds_BR.shape
    if seeds < 2:
        return of_seeds_BR[:, 0]
    error = np.nanmean(of_seeds_BR, axis=0).std(ddof=1) / seeds ** 0.5
    order_B = numpy_rng(seed, "seeds", seeds).permutation(draws)
    return of_seeds_BR.mean(1) + error * stats.t.ppf((order_B + 0.5) / draws, seeds - 1)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` interval of the bootstrap samples that are not NaN; of none, NaN."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return np.nan, np.nan
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def plus_minus(mean: float | None, std: float | None, digits: int = 4) -> str:
    """"0.8123 ± 0.0021"; without ± where there is one seed; "undefined" for None."""
    if mean is None:
        return "undefined"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def within(low: float | None, high: float | None, digits: int = 4) -> str:
    """"0.8101 to 0.8140"; "undefined" for None."""
    return "undefined" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
