"""The flags every training script shares, and the protocols that set several of them together."""

from __future__ import annotations

import argparse

from iis.cli import ScriptParser, count, numbers, path
from iis.grid import LEARNING_RATES, RATIOS, check_ratios
from iis.runtime import UserError
from IP_training.sparsify import RULES

# The switchable rows of the README's fidelity table that stage 3 decides.
PROTOCOLS = {"paper": {"sparsifier": "mask", "prototypes": "balanced", "element_choice": "balanced",
                       "test_assignment": "argmax"},
             "release": {"sparsifier": "strict", "prototypes": "first", "element_choice": "first",
                         "test_assignment": "gumbel"}}


def training_parser(description: str) -> ScriptParser:
    """The parent parser: files, grid, recipe, selection. Scripts add what their bank needs."""
    parser = ScriptParser(description=description)
    parser.plans = True
    files = parser.add_argument_group("files (published flags; by default found through --model_name and --dataset)")
    files.add_argument("--config_yaml", help="YAML with any of these settings")
    files.add_argument("--model_name", "--backbone", default="resnet50",
                       help="backbone: the folder below extractor/embs/")
    files.add_argument("--dataset", default="imagenet", help="data set whose embeddings are used")
    files.add_argument("--element_kind", default="segments", choices=("segments", "patches"),
                       help="which visual elements the bank is made of")
    files.add_argument("--concept_path", type=path, help="element embeddings of stage 2")
    files.add_argument("--train_pt", type=path, help="training representations (ours, or a bare N x D matrix)")
    files.add_argument("--val_pt", type=path, help="validation representations")
    files.add_argument("--train_labels", type=path, help="labels of a bare --train_pt: .pt, .npy or .txt")
    files.add_argument("--val_labels", type=path, help="labels of a bare --val_pt")
    files.add_argument("--feature_layer", help="layer in the names of the representation files, as stage 2 spelt it")
    files.add_argument("--save_dir", type=path, help="output folder (default IP_training/IP_<BANK>/MODEL/SETTING)")
    files.add_argument("--in_channels", type=int, help="D, checked against the files (default: theirs)")
    files.add_argument("--num_classes", type=int, help="C, checked against the files (default: theirs)")
    files.add_argument("--other_dataset", action="store_true",
                       help="allow a bank made of another data set's elements (a control)")

    grid = parser.add_argument_group("grid and recipe")
    grid.add_argument("--num_concepts", type=int, help="M (default: num_concepts of the data set's YAML, else 200)")
    grid.add_argument("--ratios", type=numbers, default=RATIOS, help="sparsity ratios s, each in [0, 1)")
    grid.add_argument("--learning_rates", type=numbers, default=LEARNING_RATES, help="learning rates of Adam")
    grid.add_argument("--seeds", type=int, default=3, help="how many seeds, counted from --first_seed")
    grid.add_argument("--first_seed", type=int, default=0, help="first seed")
    grid.add_argument("--bank_seed", type=count, metavar="N", help="draw every seed's bank as seed N does, so that the "
                      "seeds vary the heads alone (default: each seed has its own bank)")
    grid.add_argument("--n_epoch", type=int, default=30, help="epochs per head")
    grid.add_argument("--batch_size", type=int, default=1024, help="samples per step")
    grid.add_argument("--holdout", type=float, default=0.0, metavar="F",
                      help="select on this fraction of train instead of on validation (0: as the release)")
    grid.add_argument("--feature_memory", type=float, metavar="GIB", help="the raw features may take this much memory "
                      "as float32; larger ones are read from their file batch by batch, with the same result (default: "
                      "half of what is free)")
    grid.add_argument("--tf32", action="store_true", help="matrix products on CUDA in TF32: faster, with 10 bits of "
                      "mantissa; the ledger says so")
    grid.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")

    fidelity = parser.add_argument_group("fidelity (README, table)")
    fidelity.add_argument("--protocol", choices=tuple(PROTOCOLS), default="paper", help="sets the flags below together")
    fidelity.add_argument("--sparsifier", choices=RULES, help="how interpretations are sparsified (default: protocol)")
    return parser


def add_element_choice(parser: ScriptParser) -> ScriptParser:
    """The flag of banks that are made of up to 20,000 elements."""
    parser.add_argument("--element_choice", choices=("balanced", "first"), help="which elements where there are more "
                        "than 20,000: balanced over classes and seeded, or the first rows (default: protocol)")
    return parser


def apply_protocol(args: argparse.Namespace) -> argparse.Namespace:
    """Fill what the protocol decides and check what can be checked before any file is read."""
    for name, value in PROTOCOLS[args.protocol].items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, value)
    args.ratios = check_ratios(args.ratios)
    args.learning_rates = tuple(sorted(set(args.learning_rates)))
    if min(args.learning_rates) <= 0:
        raise UserError("--learning_rates must all be above 0")
    for name in ("seeds", "n_epoch", "batch_size", "num_concepts", "proj_steps", "proj_batch_size", "n_iters",
                 "saga_batch_size"):
        value = getattr(args, name, None)  # a script has some of them
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: at least 1 is needed")
    if not 0 <= args.holdout < 1:
        raise UserError(f"--holdout {args.holdout:g} is outside [0, 1): it is the fraction of train to select on")
    return args
