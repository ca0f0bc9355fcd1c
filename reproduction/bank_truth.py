"""Do concept banks find the true attributes of `shapes`? AUROC of each attribute's best concept on validation.

    python reproduction/bank_truth.py --sweep shapes                # or --model_root ../IP_training --save_dir DIR

Of a bank's M concepts the one that separates train images with and without an attribute best, whatever its sign, is
judged on validation: by its interpretations as the predictor gets them, normalised, and by the plain activations
beside (h · bankᵀ, or sparse codes). The Random bank shows how much the best of M reaches for nothing, and the linear
probe (a least-squares direction) what a single direction can reach in this representation. The Text bank is also judged
by each attribute's own word: there the sign matters, and a word that was filtered out counts as missed. An End2End bank
is that of its smallest ratio. Writes bank_truth.md, .csv (with the measures of lib/measures.py: measures_truth.py says
which orders the banks as their AUROC does; ANEC where accuracy_at_nec.py has run), .tex, and bank_truth_attributes.csv.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import run_script, setting
from iis.runtime import ROOT, UserError, each, write_text
from iis.statistics import mean_std, plus_minus
from reproduction.lib.known_attributes import Captions, auroc, best_matching, linear_probe
from reproduction.lib.measures import MEASURES, measures_of, stored_levels
from reproduction.lib.outputs import write_table
from reproduction.lib.points import finished, groups
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.tables import as_csv

ENOUGH = 0.9  # AUROC that counts as found
PROBE, RAW, OWN_WORD = "(linear probe)", ", unnormalised", ", by own word"
CAPTION = ("AUROC on validation of the concept that matches each of the {} attributes of {} best on train; mean ± std "
           "over seeds. Unnormalised: of h · bankᵀ, or of sparse codes. By own word: the mean is over the "
           "attributes whose word is in the bank.")


@dataclass(kw_only=True)
class Settings(Source):
    """What counts."""

    captions: Path = setting(ROOT / "datasets" / "shapes" / "captions.json",
                             "the true attributes of every image; their folder's name is the data set")


def main(settings: Settings) -> Path:
    """Measure every seed's bank of every run. Returns the output folder."""
    folder = output_folder(settings)
    captions, dataset = Captions(settings.captions), settings.captions.parent.name
    runs = [run for run in finished(find_runs(settings, draws=2)) if run.dataset == dataset]
    if not runs:
        raise UserError(f"none of these runs is of {dataset}, whose attributes are known")
    groups(runs)  # titles
    from reproduction.lib.nec import reached_by_all

    levels = reached_by_all(filter(None, map(stored_levels, runs)))  # ANEC is over these
    measured, failed = each(lambda run: (measure(run, captions), measures_of(run, fit=False, levels=levels)), runs)
    for sentence in failed:
        print(f"left out: {sentence}")
    if not measured:
        raise UserError("no bank could be read: run stage 3 again")
    found = pd.concat([lines for lines, _ in measured])
    found = found.drop_duplicates(["model", "M", "bank", "seed", "attribute"], keep="last")
    write_text(folder / "bank_truth_attributes.csv", as_csv(found))  # the probe of a model is in each of its runs
    lines, people = table(found)
    scores = {tuple(one[one["bank"] != PROBE].iloc[0][["model", "M", "bank"]]): mine for one, mine in measured}
    lines = [line | scores.get((line["model"], line["M"], line["bank"]), dict.fromkeys(MEASURES)) for line in lines]
    print(write_table(folder, "bank_truth", lines, people,
                      CAPTION.format(len(captions.words), dataset)))
    print(f"written: {folder}/bank_truth.csv")
    return folder


def measure(run: Run, captions: Captions) -> pd.DataFrame:
    """A line per seed and attribute: the AUROC of the run's bank as the predictor gets it and unnormalised, for Text
    of its words too, and of the probe. An attribute whose own word is not in the bank has NaN.

    Raises `UserError` where files are gone.
    """
    from IP_training.predictor import fit_normaliser

    images = [images_of(run, split) for split in ("train", "val")]
    has = [captions.has(split, own.image_paths) for split, own in zip(("train", "val"), images, strict=True)]
    train_ND, val_ND = (own.features_ND for own in images)
    label, size = run.title, run.summary["num_concepts"]
    found = [("-", PROBE, 0, linear_probe(train_ND.double().numpy(), has[0], val_ND.double().numpy(), has[1]))]
    for seed in run.summary["seeds"]:
        bank = run.bank(seed)
        activations = [bank.encoder(split_ND) for split_ND in (train_ND, val_ND)]  # (N, M)
        normaliser = fit_normaliser(bank.blocks, train_ND, bank.encoder, train_activations_NM=activations[0])
        ready = [normaliser(a_NM).numpy() for a_NM in activations]
        raw = [a_NM.numpy() for a_NM in activations]
        found += [(size, name, seed, best_matching(of_train, has[0], of_val, has[1]))
                  for name, (of_train, of_val) in ((label, ready), (label + RAW, raw))]
        if run.summary["bank"] == "Text":
            words = [next(iter(lines), "") for lines in bank.evidence]
            found.append((size, label + OWN_WORD, seed, own_words(auroc(raw[1], has[1]), captions.words, words)))
    return pd.concat([pd.DataFrame({"model": run.model, "M": size, "bank": name, "seed": seed,
                                    "attribute": captions.words, "auroc": values_A})
                      for size, name, seed, values_A in found])


def own_words(auroc_AM: np.ndarray, attributes: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """AUROC (A,) of the concept that bears the attribute's own word; NaN where none does."""
    return np.array([auroc_AM[row, words.index(word)] if word in words else np.nan
                     for row, word in enumerate(attributes)])


def table(found: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line per model and bank, as numbers and as people read them. found: the lines of `measure`."""
    values = {key: mine.pivot(index="seed", columns="attribute", values="auroc").to_numpy()  # (R, A)
              for key, mine in found.groupby(["model", "M", "bank"], sort=False)}
    lines, people = [], []
    for model, size, bank in sorted(values, key=lambda key: (key[0], str(key[1]).rjust(9), key[2])):
        values_RA, raw_RA = (values.get((model, size, name)) for name in (bank, bank + RAW))
        mean, std = mean_std(np.nanmean(values_RA, axis=1))
        count, count_std = mean_std((values_RA >= ENOUGH).sum(1))  # NaN counts as missed
        lines.append({"model": model, "M": size, "bank": bank, "seeds": len(values_RA), "auroc": mean,
                      "auroc_std": std, "found": count, "found_std": count_std, "of": values_RA.shape[1],
                      "enough": ENOUGH, "without_word": float(np.isnan(values_RA).sum(1).mean())})
        if not bank.endswith(RAW):
            people.append({"model": model, "M": size, "bank": bank, "mean AUROC": plus_minus(mean, std, 3),
                           f"of {values_RA.shape[1]} with AUROC ≥ {ENOUGH:g}": plus_minus(count, count_std, 1),
                           "unnormalised": "-" if raw_RA is None else plus_minus(*mean_std(raw_RA.mean(1)), 3)})
    return lines, people


if __name__ == "__main__":
    run_script(main, Settings)
