"""Stage 2: embed visual elements with a backbone, and, when asked, the data set's own images.

    cd extractor
    python visual_element_emb_extractor.py --config_yaml ../model_configs/resnet50_IMAGENET1K_V1.yaml \\
        --model resnet50 --target_layer_name fc --weights IMAGENET1K_V1 --data-path ../concept_library/visual/segments

writes embs/resnet50/visual_element_emb.pkl. `--dataset imagenet --representations train,val` embeds those images
too; `--check` compares the backbone's original head with its published top-1 and does nothing else. Killed and started
again, it goes on where it was. Several GPUs: torchrun --nproc-per-node N visual_element_emb_extractor.py ...
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, path, run_script, write_settings
from iis.runtime import UserError

KINDS = ("segments", "patches")


def parser() -> ScriptParser:
    """Flags of this script: the published ones (either spelling, `--data-path` or `--data_path`), and ours."""
    from extractor.backbone_flags import backbone_parser, output_flags

    flags = backbone_parser(__doc__.splitlines()[0])
    output_flags(flags)
    flags.add_argument("--data_path", type=path, help="stage 1's folder of elements, one folder per class")
    flags.add_argument("--target_layer_name", default="fc", help="layer of the elements: fc, head, heads.head, "
                       "classifier.2, layer4 … all mean the head's input; an earlier layer is pooled to N x D")
    flags.add_argument("--representations", type=_splits, default=(), metavar="train,val", help="embed these images "
                       "of --dataset too")
    flags.add_argument("--together", type=_names, default=(), metavar="A,B", help="other configurations of "
                       "model_configs/ to embed the same images with, each image decoded once for all")
    flags.add_argument("--element_kind", choices=KINDS, help="for elements made elsewhere, without a manifest")
    flags.add_argument("--check", action="store_true", help="only compare the backbone's original head on the val images "
                       "of --dataset with the published top-1 of its weights")
    return flags


def main(args: argparse.Namespace | None = None) -> None:
    """Find the images, load the backbone, make sure that every file can be written, then embed."""
    args = args or parser().settings()
    if args.check:
        from extractor.check_backbone import check

        check(args)
        return
    from extractor.backbone_flags import backbone_of
    from extractor.embed import embed_together, ranks
    from extractor.jobs import folder_name, plan
    from extractor.stage_plans import tell_stage2
    from extractor.targets import prepared

    sources, dry = _sources(args), "dry_run" in args
    everyone = [args, *(_like(args, name) for name in args.together)]
    backbones = [backbone_of(one) for one in everyone]
    planned = []
    for images, flag, elements in sources:
        jobs = [plan(images, backbone, getattr(one, flag),
                     folder_name(one.model, backbone, one.precision, one.model_name), one.save_root, one.precision,
                     elements, write=not dry) for one, (backbone, _) in zip(everyone, backbones, strict=True)]
        planned.append((images, jobs))
    device = backbones[0][1]
    for images, jobs in planned:
        compiled = args.batch_size if args.compile else 0
        targets = [job.target(backbone, compiled) for job, (backbone, _) in zip(jobs, backbones, strict=True)]
        if dry:
            tell_stage2(images, [prepared(target) for target in targets], args.batch_size, args.workers, device)
            continue
        for one, target in zip(everyone, targets, strict=True):
            if ranks()[0] == 0:
                write_settings(one, target.file.with_name(f"{target.file.name}.settings.yaml"))
        embed_together(images, targets, args.batch_size, args.workers, device)


def _like(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The settings of another configuration, with this run's images, place and batches."""
    own = parser().settings(["--config_yaml", name])
    for flag in ("dataset", "data_path", "representations", "element_kind", "save_root", "batch_size", "workers",
                 "device", "precision", "decoder", "compile"):
        setattr(own, flag, getattr(args, flag))
    return own


def _sources(args: argparse.Namespace) -> list[tuple[Any, str, dict[str, Any] | None]]:
    """What to embed: (images, the flag that names their layer, stage-1 settings or None for the data set's own)."""
    from extractor.backbone_flags import need_dataset
    from extractor.image_walk import read_stage1
    from iis.datasets import UNNAMED, folder_images, load_dataset, same_classes

    sources = []
    if args.data_path is not None:
        settings = read_stage1(args.data_path) if args.data_path.is_dir() else None
        if settings is None:
            elements = {"kind": args.element_kind or "segments", "made": "elsewhere"}
        else:
            elements = {key: value for key, value in settings.items() if key != "classes"}
            if args.element_kind not in (None, elements["kind"]):
                raise UserError(f"{args.data_path} holds {elements['kind']}, not {args.element_kind}: leave "
                                "--element_kind out, or give the folder of the others")
        images = folder_images(args.data_path, _dataset(args, elements) or UNNAMED, "elements")
        sources.append((images, "target_layer_name", elements))
    if args.representations:
        dataset = load_dataset(need_dataset(args, "--representations"))
        sets = {split: dataset.images(split) for split in args.representations}
        if len(sets) == 2:
            same_classes(sets["train"].class_names, sets["val"].class_names)
        sources += [(images, "feature_layer", None) for images in sets.values()]
    if not sources:
        raise UserError("say what to embed: --data-path FOLDER (stage 1's elements), --representations train,val with "
                        "--dataset NAME, or both")
    return sources


def _dataset(args: argparse.Namespace, elements: dict[str, Any]) -> str | None:
    """The data set the elements come from: as stage 1 recorded it, else --dataset, else unknown."""
    from iis.datasets import UNNAMED, load_dataset

    recorded = elements.get("dataset")
    if recorded not in (None, UNNAMED):
        return recorded
    return load_dataset(args.dataset).name if args.dataset and args.dataset.endswith(".yaml") else args.dataset


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _splits(text: str) -> tuple[str, ...]:
    splits = tuple(part.strip() for part in text.split(",") if part.strip())
    if not splits or set(splits) - {"train", "val"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not train, val or train,val")
    return splits


if __name__ == "__main__":
    run_script(main)
