"""Which concepts made a prediction, and what it would be without each: one HTML page, PNG, JSON and CSV.

    python reproduction/explain.py --run IP_training/IP_Prototype/shapes_large/shapes_segments_M64
    python reproduction/explain.py --run IP_training/IP_Text/shapes_large/shapes_M64 --class striped_star
    python reproduction/explain.py --run IP_training/IP_Cluster/resnet50/imagenet_segments_M200 --images cat.jpg dog.jpg
    python reproduction/explain.py --run IP_training/IP_Prototype/resnet20/cifar10_segments_M16 --mistakes 5

--run is a folder that a training script wrote. Nothing is trained; a few seconds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import positive, run_script, setting
from iis.embedding_file import Embeddings
from iis.names import slug
from iis.runtime import ROOT, UserError, make_output_folder, write_json, write_text
from reproduction.lib.explained_images import class_label, elements_root, spread, subjects_of
from reproduction.lib.explanation import Predictor, explain_class, load_predictor
from reproduction.lib.explanation_shown import cards_of, csv_lines, explanation_figure
from reproduction.lib.outputs import write_figure
from reproduction.lib.page import render
from reproduction.lib.run_files import embeddings_of
from reproduction.lib.runs import read_run
from reproduction.lib.tables import as_csv

MOST = 100  # images of one explanation: a page to be read, and a figure that can be drawn


@dataclass(kw_only=True)
class Settings:
    """What is explained, and how much of it is shown."""

    run: Path = setting(help="a ledger's folder, with its predictors/")
    seed: int = setting(0, "whose predictor is explained")
    ratio: float | None = setting(None, "sparsity ratio s (default: the sparsest that keeps at least 5 concepts)")
    images: list[str] | None = setting(None, "image files, or names in the validation split", type=str, nargs="+",
                                       metavar="PATH")
    class_name: str | None = setting(None, "instead: validation images of one class, and what makes the class as a "
                                     "whole", also=("--class",), metavar="NAME")
    rows: tuple[float, ...] | None = setting(None, "instead: rows of the validation features (default: --num_images "
                                             "spread over all)", metavar="0,5,7")
    mistakes: int | None = setting(None, "instead: N validation images that the predictor gets right, and N that it "
                                   "gets wrong, each spread over all", type=positive, metavar="N")
    num_images: int = setting(8, "how many, without --images or --rows", type=positive)
    top: int = setting(5, "concepts shown of each image", type=positive)
    out: Path | None = setting(None, "output folder (default: results/explanations/…)")
    val_pt: Path | None = setting(None, "the run's validation features, where they are not found")
    elements: Path | None = setting(None, "folder with the concepts' images, likewise")
    config: str | None = setting(None, "YAML of the backbone, for --images outside the data set",
                                 also=("--config_yaml",))
    device: str | None = setting(None, "for the same: cpu, cuda or cuda:N")


def main(settings: Settings) -> Path:
    """Explain, write explanation.html, .png, .pdf, .json and .csv; returns their folder."""
    if [settings.images, settings.class_name, settings.rows, settings.mistakes].count(None) < 3:
        raise UserError("--images, --class, --rows and --mistakes do not go together; name one of them")
    predictor = load_predictor(settings.run, settings.seed, settings.ratio)
    identity = predictor.identity
    val, val_file = embeddings_of(settings.run, identity, "val", settings.val_pt)
    root = elements_root(settings.run, identity, settings.elements)
    words, of_class = chosen(settings, predictor, val)
    if len(words) > MOST:
        raise UserError(f"{len(words)} images do not fit on one page; name at most {MOST}")
    folder = make_output_folder(settings.out or default_folder(settings, predictor))
    subjects = subjects_of(words, val, val_file, identity["dataset"], settings.config, settings.device)
    cards = cards_of(predictor, subjects, root, settings.top, of_class["lines"] if of_class else ())
    lines = csv_lines(cards["predictions"])
    about = {"ratio": predictor.ratio, "kept": predictor.kept, "top1": predictor.top1, "seed": predictor.seed,
             "identity": identity, "warnings": warnings_of(settings.run)}
    size = len(predictor.bank_MD)
    title = (f"Why {identity['model']} says so: {size} {identity['bank']} concepts, {identity['dataset']}, "
             f"s = {predictor.ratio:g}, seed {predictor.seed}")
    write_json(folder / "explanation.json", {"run": str(settings.run), **about, "class": of_class,
                                             "pictures": cards["predictions"]})
    write_text(folder / "explanation.csv", as_csv(lines))
    write_text(folder / "explanation.html", render(
        "explanation.html", title=title, size=size, asked=settings.ratio is not None, of_class=of_class,
        negative=(lines.activation < 0).mean(), **cards, **about))
    write_figure(folder, "explanation", explanation_figure(title, **cards))
    print(f"{title}: {predictor.kept} concepts kept, top-1 {100 * predictor.top1:.2f} %", *about["warnings"], sep="\n")
    print(f"written: {folder}/explanation.html, .png, .pdf, .json, .csv ({len(subjects)} images)")
    return folder


def chosen(settings: Settings, predictor: Predictor, val: Embeddings) -> tuple[list[str], dict[str, Any] | None]:
    """The images that the settings name (files, or names in the validation split); with --class, also its
    explanation."""
    if settings.images:
        return settings.images, None
    if settings.class_name is None:
        rows = settings.rows or spread(range(len(val)), settings.num_images)
        if settings.mistakes:
            right_V = predictor.logits(predictor.interpretations(val.features_ND)).argmax(1) == val.labels_N
            rows = [row for group in (right_V, ~right_V)
                    for row in spread(group.nonzero().flatten().tolist(), settings.mistakes)]
        if wrong := [row for row in rows if row not in range(len(val))]:
            raise UserError(f"--rows {wrong[0]:g}: the validation split has rows 0 to {len(val) - 1}")
        return [val.image_paths[int(row)] for row in rows], None
    label = class_label(settings.class_name, predictor.class_names, val.class_names)
    rows = (val.labels_N == label).nonzero().flatten().tolist()
    if not rows:
        raise UserError(f"the validation split has no image of the class {settings.class_name!r}; name another one")
    lines = explain_class(predictor, val.features_ND[rows].float(), label)
    return ([val.image_paths[row] for row in spread(rows, settings.num_images)],
            {"name": predictor.class_names[label], "count": len(rows), "lines": lines})


def warnings_of(run: Path) -> list[str]:
    """The warnings of the run's summary; none where its ledger cannot be summarised (it lacks a ratio)."""
    try:
        return [remark for remark in read_run(run, draws=2).summary["remarks"] if remark.startswith("warning: ")]
    except UserError:
        return []


def default_folder(settings: Settings, predictor: Predictor) -> Path:
    """results/explanations/IP_BANK_MODEL_SETTING_seedR_sS[_what]."""
    what = [settings.class_name, settings.images and "images", settings.rows and "rows",
            settings.mistakes and f"mistakes{settings.mistakes}"]
    parts = [f"IP_{predictor.identity['bank']}", predictor.identity["model"], settings.run.name,
             f"seed{settings.seed}", f"s{predictor.ratio:g}", *filter(None, what)]
    return ROOT / "results" / "explanations" / slug("_".join(parts))


if __name__ == "__main__":
    run_script(main, Settings)
