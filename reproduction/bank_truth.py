"""Do concept banks find the true attributes of `shapes`? AUROC of each attribute's best concept on validation.

    python reproduction/bank_truth.py --sweep shapes                # or --model_root ../IP_training --save_dir DIR

Of a bank's M concepts the one that separates train images with and without an attribute best, whatever its sign, is
judged on validation: by its interpretations as the predictor sees them, normalised, and by the plain projections
h · bankᵀ beside. The Random bank says how much the best of M reaches for nothing, and the linear probe (a least-squares
direction) what a single direction can reach in this representation. The Text bank is also judged by each attribute's
own word: there the sign matters, and a word that was filtered out counts as missed. An End2End bank is that of its
ratio 0. Writes bank_truth.md, .csv, .tex, and bank_truth_attributes.csv with every attribute.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from iis.cli import ScriptParser, path, run_script
from iis.runtime import ROOT, UserError, each, make_output_folder, read_json, write_text
from iis.statistics import mean_std
from IP_training.concept_banks import Bank
from reproduction.lib.attribute_auroc import Captions, auroc, best_matching, linear_probe
from reproduction.lib.outputs import write_table
from reproduction.lib.points import epoch_of
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import as_csv, plus_minus

PROBE, RAW, OWN_WORD = "(linear probe)", ", unnormalised", ", by own word"


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--captions", type=path, default=ROOT / "datasets" / "shapes" / "captions.json",
                      help="the true attributes of every image; their folder's name is the data set")
    script.add_argument("--enough", type=float, default=0.9, help="AUROC that counts as found")
    script.add_argument("--all", action="store_true", help="variants of a sweep and checkpoints along pre-training too")
    return script


def main(args: argparse.Namespace) -> Path:
    """Measure every seed's bank of every run. Returns the output folder."""
    if not 0 < args.enough <= 1:
        raise UserError(f"--enough {args.enough:g} is no AUROC to ask for: it must lie above 0 and be at most 1")
    folder = make_output_folder(output_folder(args))
    captions, dataset = Captions(args.captions), args.captions.parent.name
    runs = [run for run in find_runs(args, draws=2) if run.summary["dataset"] == dataset
            and (args.all or not (run.variant or epoch_of(run.model) is not None))]
    if not runs:
        raise UserError(f"none of these runs is of {dataset}, whose attributes are known")
    measured, failed = each(lambda run: measure(run, captions), runs)
    for sentence in failed:
        print(f"left out: {sentence}")
    found = {key: by_seed for banks in measured for key, by_seed in banks.items()}
    if not found:
        raise UserError("no bank could be read: run stage 3 again")
    lines, shown = table(found, args.enough)
    write_text(folder / "bank_truth_attributes.csv", as_csv([
        {"model": model, "M": size, "bank": bank, "seed": seed, "attribute": word, "auroc": float(value)}
        for (model, size, bank), by_seed in found.items() for seed, values in by_seed.items()
        for word, value in zip(captions.words, values, strict=True)]))
    caption = (f"AUROC on validation of the concept that matches each of the {len(captions.words)} attributes of "
               f"{dataset} best on train; mean ± std over seeds. Unnormalised: of h · bankᵀ. By own word: the mean is "
               "over the attributes whose word is in the bank.")
    print(write_table(folder, "bank_truth", lines, shown, caption))
    print(f"written: {folder}/bank_truth.csv")
    return folder


def measure(run: Run, captions: Captions) -> dict[tuple[str, Any, str], dict[int, np.ndarray]]:
    """{(model, M, what): {seed: AUROC (A,) per attribute}}: the run's bank as the predictor sees it and unnormalised,
    for Text its words too, and the probe.

    By own word an attribute without a word in the bank is NaN. Raises `UserError` where files are gone.
    """
    train, val = (images_of(run, split) for split in ("train", "val"))
    has = [captions.has(split, images.image_paths) for split, images in (("train", train), ("val", val))]
    label = ", ".join(part for part in (run.summary["bank"], run.variant) if part)
    size, found = run.summary["num_concepts"], {}
    for seed in run.summary["seeds"]:
        bank = bank_of(run.folder / "predictors" / f"seed_{seed}")
        seen, raw = activations(bank, train.features_ND, val.features_ND)
        scores = {label: best_matching(seen[0], has[0], seen[1], has[1]),
                  f"{label}{RAW}": best_matching(raw[0], has[0], raw[1], has[1])}
        if run.summary["bank"] == "Text":
            words = [next(iter(lines), "") for lines in bank.evidence]
            scores[f"{label}{OWN_WORD}"] = own_words(auroc(raw[1], has[1]), captions.words, words)
        for what, values_A in scores.items():
            found.setdefault((run.model, size, what), {})[seed] = values_A
    features = [images.features_ND.double().numpy() for images in (train, val)]
    return {**found, (run.model, "-", PROBE): {0: linear_probe(features[0], has[0], features[1], has[1])}}


def bank_of(predictors: Path) -> Bank:
    """The bank of a predictor file, named without its suffix."""
    from safetensors.torch import load_file

    file = predictors.with_suffix(".safetensors")
    if not file.is_file():
        raise UserError(f"there is no file {file} with the bank: run stage 3 again")
    tensors, described = load_file(file), read_json(predictors.with_suffix(".json"))
    key, name = ("all", "bank") if "bank" in tensors else ("0", "0/bank")
    return Bank(described["identity"]["bank"], tensors[name], described["concepts"][key],
                tuple((kind, columns) for kind, columns in described["blocks"][key]))


def activations(bank: Bank, *features_ND: torch.Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each split (train first): the interpretations (N, M) before scale, shift and sparsity, and h · bankᵀ."""
    from IP_training.predictor import fit_normaliser
    from IP_training.predictor import interpret

    normaliser = fit_normaliser(bank.blocks, features_ND[0], bank.vectors_MD)
    return ([interpret(split_ND, bank.vectors_MD, normaliser).numpy() for split_ND in features_ND],
            [(split_ND.float() @ bank.vectors_MD.T).numpy() for split_ND in features_ND])


def own_words(auroc_AM: np.ndarray, attributes: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """AUROC (A,) of the concept that bears the attribute's own word; NaN where none does."""
    return np.array([auroc_AM[row, words.index(word)] if word in words else np.nan
                     for row, word in enumerate(attributes)])


def table(found: dict[tuple[str, Any, str], dict[int, np.ndarray]], enough: float
          ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line per model and bank, as numbers and as people read them."""
    lines, shown = [], []
    for key in sorted(found, key=lambda key: (key[0], str(key[1]).rjust(9), key[2])):
        model, size, bank = key
        values_RA, raw_RA = (np.array(list(found.get(one, {}).values())) for one in (key, (model, size, bank + RAW)))
        mean, std = mean_std(np.nanmean(values_RA, axis=1))
        count, count_std = mean_std((values_RA >= enough).sum(1))  # NaN counts as missed
        lines.append({"model": model, "M": size, "bank": bank, "seeds": len(values_RA), "auroc": mean,
                      "auroc_std": std, "found": count, "found_std": count_std, "of": values_RA.shape[1],
                      "enough": enough, "without_word": float(np.isnan(values_RA).sum(1).mean())})
        if not bank.endswith(RAW):
            shown.append({"model": model, "M": size, "bank": bank, "mean AUROC": plus_minus(mean, std, 3),
                          f"of {values_RA.shape[1]} with AUROC ≥ {enough:g}": plus_minus(count, count_std, 1),
                          "unnormalised": plus_minus(*mean_std(raw_RA.mean(1)), 3) if len(raw_RA) else "-"})
    return lines, shown


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
