"""How sure a number is: mean and standard deviation over seeds, and a bootstrap over validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iis.equations import accuracy_retention, area
from iis.runtime import numpy_rng


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation with ddof 1; None where one value says nothing about spread."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def bootstrap_iis(ratios: Sequence[float], correct_RSN: np.ndarray, dense_RN: np.ndarray, draws: int = 1000,
                  seed: int = 0) -> np.ndarray:
    """IIS of `draws` resamples of the validation images, each the mean over seeds. Returns (draws,).

    correct_RSN: (R seeds, S ratios, N images) and dense_RN: (R, N), True where the selected head is right.
    One resample serves all heads, so that the pairing of ratios and dense head is kept.
    """
    seeds, ratios_count, count = correct_RSN.shape
    right_N = np.concatenate([correct_RSN.reshape(-1, count), dense_RN]).astype(np.float32)  # (R·S + R, N)
    rng, scores = numpy_rng(seed, "bootstrap", count), []
    for start in range(0, draws, 100):  # 100 x N counts at a time: 20 MB at N = 50,000
        picks = rng.multinomial(count, np.full(count, 1 / count), size=min(100, draws - start))
        accuracy = picks.astype(np.float32) @ right_N.T / count  # (draws, R·S + R)
        acc_RS = accuracy[:, :seeds * ratios_count].reshape(-1, seeds, ratios_count)
        retention = accuracy_retention(acc_RS, accuracy[:, seeds * ratios_count:])  # (draws, R, S)
        scores.append(area(ratios, retention).mean(axis=1))
    return np.concatenate(scores)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` interval of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def plus_minus(mean: float, std: float | None, digits: int = 4) -> str:
    """"0.8123 ± 0.0021"; without ± where there is one seed."""
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
