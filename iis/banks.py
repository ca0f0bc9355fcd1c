"""The concept banks, for Python: `bank=iis.banks.nmf(elements, 64)` of `iis.score`. They are made in IP_training/."""

from IP_training.banks import Bank, MakeBank, Seed, clusters, combined, from_matrix, prototypes, random
from IP_training.dictionaries import nmf, pca, splice
from IP_training.dictionary_file import from_file
from IP_training.sparse_autoencoder import SAERecipe, sae

__all__ = ["Bank", "MakeBank", "SAERecipe", "Seed", "clusters", "combined", "from_file", "from_matrix", "nmf", "pca",
           "prototypes", "random", "sae", "splice"]
