"""Settings that all training scripts share, and the protocols that set several of them together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iis.cli import count, positive, setting
from iis.grid import LEARNING_RATES, RATIOS, check_ratios, held_count
from iis.names import slug
from iis.runtime import ROOT, UserError

# The switchable rows of docs/fidelity.md that stage 3 decides.
PROTOCOLS = {"paper": {"sparsifier": "mask", "prototypes": "balanced", "element_choice": "balanced",
                       "test_assignment": "argmax"},
             "release": {"sparsifier": "strict", "prototypes": "first", "element_choice": "first",
                         "test_assignment": "gumbel"}}
# How long heads train, and with which rates. reproduction/recipe.py measures what the published recipe costs. The
# converged one has no best rate at its edge, and takes its batch size from the number of training rows: `fit_batches`.
RECIPES = {"published": {"learning_rates": LEARNING_RATES, "n_epoch": 30, "batch_size": 1024},
           "converged": {"learning_rates": (*LEARNING_RATES, 0.3, 1.0), "n_epoch": 300, "batch_size": None}}
LEAST_STEPS, SMALLEST_BATCH = 10, 32  # of the converged recipe: steps in an epoch, rows in a step
SAE_STEPS = 1000  # of training a sparse autoencoder
PENALTY = 0.25  # of the codes of SpLiCE: its authors' package
SPARSIFIERS = ("mask", "strict", "shrink")  # the rules of sparsify.py
AT_LEAST_ONE = ("seeds", "n_epoch", "batch_size", "num_concepts", "proj_steps", "proj_batch_size", "n_iters")


@dataclass(kw_only=True)
class Files:
    """Files (published flags; by default found through --model_name and --dataset)"""

    config_yaml: str | None = setting(None, "YAML with any of these settings")
    model_name: str | None = setting(None, "backbone: the folder below extractor/embs/ (default resnet50; required for "
                                     "bare matrices)", also=("--backbone",))
    dataset: str | None = setting(None, "data set whose embeddings are used (default imagenet; required for bare "
                                  "matrices)")
    element_kind: Literal["segments", "patches"] = setting("segments", "which visual elements the bank is made of")
    concept_path: Path | None = setting(None, "element embeddings of stage 2")
    train_pt: Path | None = setting(None, "training representations (ours, or a bare N x D matrix)")
    val_pt: Path | None = setting(None, "validation representations")
    train_labels: Path | None = setting(None, "labels of a bare --train_pt: .pt, .npy or .txt")
    val_labels: Path | None = setting(None, "labels of a bare --val_pt")
    feature_layer: str | None = setting(None, "layer in the names of the representation files, as spelt in stage 2")
    save_dir: Path | None = setting(None, "output folder (default --save_root/IP_<BANK>/MODEL/SETTING)")
    save_root: Path = setting(ROOT / "IP_training", "where output folders go by default")
    dense_heads_dir: Path | None = setting(None, "where dense heads are kept for all banks (default "
                                           "IP_training/dense_heads, or the environment variable IIS_DENSE_HEADS)")
    in_channels: int | None = setting(None, "D, checked against the files (default: theirs)")
    num_classes: int | None = setting(None, "C, checked against the files (default: theirs)")
    other_dataset: bool = setting(False, "allow a bank made of another data set's elements (a control)")


@dataclass(kw_only=True)
class Grid(Files):
    """Grid and recipe"""

    num_concepts: int | None = setting(None, "M (default: num_concepts of the data set's YAML, else 200)")
    ratios: tuple[float, ...] = setting(RATIOS, "sparsity ratios s, each in [0, 1)")
    recipe: Literal["published", "converged"] = setting(
        "published", "sets --learning_rates, --n_epoch and --batch_size where they are left out: "
        "0.001,0.01,0.1, 30 and 1024; or 0.001,0.01,0.1,0.3,1, 300 and at least 10 steps an epoch")
    learning_rates: tuple[float, ...] | None = setting(None, "learning rates of Adam (default: recipe)")
    seeds: int = setting(3, "how many seeds, counted from --first_seed")
    first_seed: int = setting(0, "first seed")
    bank_seed: int | None = setting(None, "draw every seed's bank as seed N does, so that seeds vary the heads alone "
                                    "(default: each seed has its own bank)", type=count, metavar="N")
    n_epoch: int | None = setting(None, "epochs per head (default: recipe)")
    batch_size: int | None = setting(None, "samples per step (default: recipe)")
    holdout: float = setting(0.0, "select on this fraction of train instead of on validation (0: as the release)",
                             metavar="F")
    feature_memory: float | None = setting(None, "memory for the raw features as float32; larger ones are read from "
                                           "their file batch by batch, with the same result (default: half of what is "
                                           "free)", metavar="GIB")
    jobs: int | None = setting(None, "processes on a CPU, of one thread each; the result is the same to "
                               "rounding (default: one per core, as far as memory holds them)", type=positive)
    tf32: bool = setting(False, "products on CUDA in TF32: faster, 10 bits of mantissa; recorded in the ledger")
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    dry_run: bool = setting(False, "only print what would be trained: shapes, bytes and folders")


@dataclass(kw_only=True)
class TrainingSettings(Grid):
    """Fidelity (docs/fidelity.md)"""

    protocol: Literal["paper", "release"] = setting("paper", "sets the flags of this group that are left out")
    sparsifier: str | None = setting(None, "how interpretations are sparsified (default: protocol)",
                                     choices=SPARSIFIERS)

    def __post_init__(self) -> None:
        """Fill what protocol and recipe decide, and check what can be checked before any file is read."""
        for name, value in (PROTOCOLS[self.protocol] | RECIPES[self.recipe]).items():
            if getattr(self, name, value) is None:
                setattr(self, name, value)
        self.ratios = check_ratios(self.ratios)
        self.learning_rates = tuple(sorted(set(self.learning_rates)))
        if not self.learning_rates or not min(self.learning_rates) > 0:
            raise UserError("--learning_rates: at least one is needed, and all must be above 0")
        for name in AT_LEAST_ONE:
            value = getattr(self, name, None)  # a script has some of them
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: at least 1 is needed")
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout {self.holdout:g} is outside [0, 1): it is the fraction of train to select on")

    def fit_batches(self, rows: int) -> None:
        """Set a batch size that the recipe leaves open: the largest power of two, 32 to 1024, that gives `rows`
        training rows, less those held out, at least 10 steps an epoch; 32 where they are too few for that."""
        if self.batch_size is None:
            most = max(SMALLEST_BATCH, (rows - held_count(rows, self.holdout)) // LEAST_STEPS)
            self.batch_size = min(RECIPES["published"]["batch_size"], 2 ** (most.bit_length() - 1))

    @property
    def seed_numbers(self) -> range:
        """The seeds to train."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def dense_folder(self, train_hash: str, val_hash: str) -> Path:
        """Where the dense heads of these features lie: the name holds all they depend on but seed and rate."""
        parts = [self.model_name, self.dataset, train_hash[:8], val_hash[:8], f"e{self.n_epoch}", f"b{self.batch_size}",
                 f"holdout{self.holdout:g}" if self.holdout else None, "tf32" if self.tf32 else None]
        root = self.dense_heads_dir or os.environ.get("IIS_DENSE_HEADS") or ROOT / "IP_training" / "dense_heads"
        return Path(root) / slug("_".join(filter(None, parts)))

    def default_folder(self, identity: dict) -> Path:
        """IP_BANK/MODEL/… below --save_root, with what tells this setting from others (identity: `run.identity_of`)."""
        bank, concept_set, recipe = identity["bank"], identity.get("concept_set"), RECIPES[self.recipe]
        parts = [self.dataset, self.element_kind if identity["elements_hash"] else None, *identity.get("parts", []),
                 identity.get("bank_name"), *of_codes(identity),
                 concept_set if concept_set != f"{self.dataset}_filtered" else None,  # not the data set's own list
                 f"M{identity['num_concepts'] or 'all'}", self.protocol if self.protocol != "paper" else None,
                 *(str(getattr(self, name)) for name, value in PROTOCOLS[self.protocol].items()
                   if getattr(self, name, value) != value),
                 f"holdout{self.holdout:g}" if self.holdout else None,
                 self.recipe if self.recipe != "published" else None,
                 f"epochs{self.n_epoch}" if self.n_epoch != recipe["n_epoch"] else None,
                 f"batch{self.batch_size}" if recipe["batch_size"] not in (None, self.batch_size) else None,
                 f"bank{self.bank_seed}" if self.bank_seed is not None else None, "tf32" if self.tf32 else None]
        return self.save_root / f"IP_{bank}" / slug(self.model_name) / slug("_".join(filter(None, parts)))


def usual_k(num_concepts: int) -> int:
    """How many codes of a sparse autoencoder stay unless said: an eighth of M, at least 1."""
    return max(1, num_concepts // 8)


def of_codes(identity: dict) -> list[str]:
    """How a folder's name calls the settings of a dictionary and its codes; [] for a bank without them."""
    usual = {"sae_k": usual_k(identity["num_concepts"] or 0) if "sae_steps" in identity else None,
             "sae_control": "none", "sae_steps": SAE_STEPS, "route": "decoder", "learned_on": "elements",
             "penalty": PENALTY}
    words = {"sae_k": "k{}", "sae_steps": "steps{}", "learned_on": "on-{}", "penalty": "penalty{}"}
    return [words.get(name, "{}").format(identity[name]) for name in
            ("sae_rule", "sae_k", "sae_control", "sae_steps", "learned_on", "route", "penalty")
            if identity.get(name) not in (None, usual.get(name))]


@dataclass(kw_only=True)
class ElementSettings(TrainingSettings):
    """Banks made of up to 20,000 elements"""

    element_choice: Literal["balanced", "first"] | None = setting(
        None, "which elements where there are more than 20,000: balanced over classes and seeded, or the first rows "
        "(default: protocol)")
