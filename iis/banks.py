"""The concept banks, for Python: `bank=iis.banks.nmf(elements, 64)` of `iis.score`. They are made in IP_training/."""

from IP_training.banks import Bank, MakeBank, Seed, clusters, combined, from_matrix, prototypes, random
from IP_training.dictionaries import nmf, pca, splice

__all__ = ["Bank", "MakeBank", "Seed", "clusters", "combined", "from_matrix", "nmf", "pca", "prototypes",
           "random", "splice"]
