"""Which concepts made a prediction, and what it would be without each: one HTML page, PNG, JSON and CSV.

    python reproduction/explain.py --run IP_training/IP_Prototype/shapes_large/shapes_segments_M64
    python reproduction/explain.py --run IP_training/IP_Text/shapes_large/shapes_M64 --class striped_star
    python reproduction/explain.py --run IP_training/IP_Cluster/resnet50/imagenet_segments_M200 --images cat.jpg dog.jpg

--run is a folder that a training script wrote. Nothing is trained; a few seconds.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, path, positive, run_script
from iis.runtime import ROOT, UserError, make_output_folder, write_json, write_text

MOST = 100  # images of one explanation: a page to be read, and a figure that can be drawn


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--run", type=path, required=True, help="a ledger's folder, with its predictors/")
    script.add_argument("--seed", type=int, default=0, help="whose predictor is explained")
    script.add_argument("--ratio", type=float, help="sparsity ratio s (default: the sparsest that keeps at least 5 "
                      "concepts)")
    which = script.add_mutually_exclusive_group()
    which.add_argument("--images", nargs="+", metavar="PATH", help="image files, or names in the validation split")
    which.add_argument("--class", dest="class_name", metavar="NAME", help="validation images of one class, and what "
                       "makes the class as a whole")
    which.add_argument("--rows", type=_rows, metavar="0,5,7", help="rows of the validation features (default: "
                       "--num_images spread over all)")
    script.add_argument("--num_images", type=positive, default=8, help="how many, without --images or --rows")
    script.add_argument("--top", type=positive, default=5, help="concepts shown of each image")
    script.add_argument("--out", type=path, help="output folder (default: results/explanations/…)")
    script.add_argument("--val_pt", type=path, help="the run's validation features, where they are not found")
    script.add_argument("--elements", type=path, help="folder with the concepts' images, likewise")
    script.add_argument("--config_yaml", dest="config", help="YAML of the backbone, for --images outside the data set")
    script.add_argument("--device", help="for the same: cpu, cuda or cuda:N")
    return script


def main(args: argparse.Namespace) -> Path:
    """Explain, write explanation.html, .png, .pdf, .json and .csv; returns their folder."""
    import torch

    from reproduction.lib.concept_images import concept_of, elements_root
    from reproduction.lib.explanation import explain, load_predictor
    from reproduction.lib.explanation_figure import explanation_figure
    from reproduction.lib.explanation_page import explanation_page
    from reproduction.lib.outputs import write_figure
    from reproduction.lib.run_files import embeddings_of
    from reproduction.lib.stories import csv_lines, stories
    from reproduction.lib.tables import as_csv

    predictor = load_predictor(args.run, args.seed, args.ratio)
    identity = predictor.identity
    val, val_file = embeddings_of(args.run, identity, "val", args.val_pt)
    root = elements_root(args.run, identity, args.elements)
    folder = make_output_folder(args.out or default_folder(args, predictor))
    wanted = len(args.images or args.rows or range(args.num_images))
    if wanted > MOST:
        raise UserError(f"{wanted} images do not fit on one page; name at most {MOST}")
    subjects, of_class = chosen(args, predictor, val, val_file)
    explanation = explain(predictor, torch.stack([one.features_D for one in subjects]).float())
    told = stories(predictor, explanation, subjects)
    shown = {concept["concept"] for story in told for concept in story["concepts"][:args.top]}
    shown |= {line["concept"] for line in of_class["lines"][:args.top]} if of_class else set()
    concepts = {m: concept_of(m, predictor.evidence[m], identity["bank"], root) for m in sorted(shown)}
    title = f"Why {identity['model']} says so: {identity['bank']} concepts"
    about = described(predictor, args.ratio, explanation.x_NM)
    write_json(folder / "explanation.json", {"run": str(args.run), "seed": args.seed, "ratio": predictor.ratio,
                                             "kept": predictor.kept, "top1": predictor.top1, "identity": identity,
                                             "class": of_class, "pictures": told})
    write_text(folder / "explanation.csv", as_csv(csv_lines(told)))
    made = explanation_page(title, about, told, subjects, concepts, args.top, of_class)
    write_text(folder / "explanation.html", made)
    write_figure(folder, "explanation", explanation_figure(told, subjects, concepts, args.top))
    print("\n".join(about))
    print(f"written: {folder}/explanation.html, .png, .pdf, .json, .csv ({len(told)} images)")
    return folder


def chosen(args: argparse.Namespace, predictor: Any, val: Any,
           val_file: Path) -> tuple[list[Any], dict[str, Any] | None]:
    """The subjects the flags name, and, with --class, the explanation of the class."""
    from reproduction.lib.explanation import explain_class
    from reproduction.lib.subjects import class_label, from_files, from_rows, spread

    dataset = predictor.identity["dataset"]
    if args.images:
        return from_files(args.images, val, val_file, dataset, args.config, args.device), None
    if args.class_name is None:
        return from_rows(args.rows or spread(range(len(val)), args.num_images), val, dataset), None
    label = class_label(args.class_name, predictor.class_names, val.class_names)
    rows = (val.labels_N == label).nonzero().flatten().tolist()
    if not rows:
        raise UserError(f"the validation split has no image of the class {args.class_name!r}; choose another one")
    lines = explain_class(predictor, val.features_ND[rows].float(), label)
    for line in lines:
        line["evidence"] = predictor.evidence[line["concept"]]
    of_class = {"name": predictor.class_names[label], "count": len(rows), "lines": lines}
    return from_rows(spread(rows, args.num_images), val, dataset), of_class


def described(predictor: Any, asked: float | None, x_NM: Any) -> list[str]:
    """What was explained, in sentences."""
    identity, total = predictor.identity, len(predictor.bank_MD)
    negative = float((x_NM < 0).sum() / max(int((x_NM != 0).sum()), 1))
    why = "" if asked is not None else " (chosen: the sparsest that keeps at least 5 concepts)"
    return [f"Backbone {identity['model']}, data set {identity['dataset']}, bank {identity['bank']} of {total} "
            f"concepts, seed {predictor.seed}.",
            f"Sparsity ratio {predictor.ratio:g}{why}: {predictor.kept} of {total} concepts stay in each prediction; "
            f"top-1 {100 * predictor.top1:.2f} % on the validation split.",
            f"Of the activations kept in these predictions {100 * negative:.0f} % are negative: less of a concept than "
            "usual, not more."]


def default_folder(args: argparse.Namespace, predictor: Any) -> Path:
    """results/explanations/IP_BANK_MODEL_SETTING_seedR_sS[_what]."""
    from iis.names import slug

    parts = [f"IP_{predictor.identity['bank']}", predictor.identity["model"], args.run.name, f"seed{args.seed}",
             f"s{predictor.ratio:g}", *([args.class_name] if args.class_name else []),
             *(["images"] if args.images else []), *(["rows"] if args.rows else [])]
    return ROOT / "results" / "explanations" / slug("_".join(parts))


def _rows(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of row numbers")
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
