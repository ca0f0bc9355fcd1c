"""Does the Text bank find the true attributes of `shapes`? AUROC of each attribute word's activation on validation.

    python reproduction/text_truth.py --model_name shapes_large        # after make demo

An attribute whose word was filtered out of the bank counts as missed. Signs matter: an anti-aligned concept has an
AUROC near 0. Writes text_truth.csv beside the ledger.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.config import DoorParser
from iis.embedding_file import Embeddings, load_embeddings
from iis.runtime import ROOT, UserError, read_json, run_door, write_text
from iis.tables import as_csv


def parser() -> DoorParser:
    """The flags of this door."""
    door = DoorParser(description=__doc__.splitlines()[0])
    door.add_argument("--model_name", default="shapes_large", help="backbone whose Text bank is looked at")
    door.add_argument("--enough", type=float, default=0.9, help="AUROC that counts as found")
    return door


def main(args: argparse.Namespace) -> None:
    """Measure every seed's bank."""
    ledgers = sorted((ROOT / "IP_training" / "IP_Text" / args.model_name).glob("shapes_*/results.jsonl"))
    if not ledgers:
        raise UserError(f"there is no Text bank of {args.model_name} on shapes; run make demo first")
    val_file = ROOT / "extractor" / "embs" / args.model_name / f"shapes_val_{args.model_name}_fc.pt"
    captions_file = ROOT / "datasets" / "shapes" / "captions.json"
    for file in (val_file, captions_file):
        if not file.is_file():
            raise UserError(f"there is no file {file}; run make demo first")
    val, captions = load_embeddings(val_file), read_json(captions_file)
    for ledger in ledgers:
        lines = []
        for file in sorted((ledger.parent / "predictors").glob("seed_*.safetensors")):
            scores = attribute_auroc(file.with_suffix(""), val, captions)
            found = sum(score is not None and score >= args.enough for score in scores.values())
            missed = [f"{word} {'filtered away' if score is None else f'{score:.3f}'}"
                      for word, score in scores.items() if score is None or score < args.enough]
            print(f"{ledger.parent.name}, {file.stem}: {found} of {len(scores)} attributes reach AUROC "
                  f"{args.enough:g}; not: {', '.join(missed) or 'none'}")
            lines += [{"seed": file.stem, "attribute": word, "auroc": score} for word, score in scores.items()]
        write_text(ledger.parent / "text_truth.csv", as_csv(lines))


def attribute_auroc(predictors: Path, val: Embeddings, captions: dict[str, Any]) -> dict[str, float | None]:
    """AUROC per attribute word, None where the bank lacks it. predictors: the file's path without its suffix."""
    from safetensors.torch import load_file
    from sklearn.metrics import roc_auc_score

    bank_MD = load_file(predictors.with_suffix(".safetensors"))["bank"]
    words = [lines[0] for lines in read_json(predictors.with_suffix(".json"))["concepts"]["all"]]
    activations_NM = val.features_ND @ bank_MD.T
    true = [set(captions["images"][f"val/{name}"]["concepts"]) for name in val.image_paths]
    scores: dict[str, float | None] = {}
    for word in (word for group in captions["attributes"].values() for word in group):
        has = [word in concepts for concepts in true]
        scores[word] = float(roc_auc_score(has, activations_NM[:, words.index(word)])) if word in words else None
    return scores


if __name__ == "__main__":
    run_door(lambda: main(parser().settings()))
