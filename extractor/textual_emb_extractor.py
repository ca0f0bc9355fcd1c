"""Stage 2 for words: CLIP's embeddings of concepts and images, and the backbone's representations of the images.

    cd extractor
    python textual_emb_extractor.py --dataset imagenet --concept_set ../concept_library/textual/imagenet_filtered.txt \\
        --backbone resnet50 --activation_dir ./embs/resnet50/ --feature_layer layer4

writes into --activation_dir imagenet_filtered_ViT-B16.pt, imagenet_{train,val}_clip_ViT-B16.pt and
imagenet_{train,val}_resnet50_layer4.pt. What is there already, made by this script or the visual one, is kept; CLIP's
files are made once for all backbones (in embs/clip, linked from each folder). Every image is decoded once for CLIP
and the backbone. Killed and started again, it goes on where it was. A CLIP of one's own: --clip_name my_clip.json.
ViT-B/16 is 600 MB, looked for in the caches, then downloaded; IIS_CLIP_WEIGHTS names a file that holds it.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, path, run_script, write_settings
from iis.names import CLIP_FILES
from iis.runtime import UserError


def parser() -> ScriptParser:
    """Flags of this script: the published ones, and those of every script that loads a backbone."""
    from extractor.backbone_flags import backbone_parser, output_flags

    flags = backbone_parser(__doc__.splitlines()[0])
    output_flags(flags)
    flags.flags()["model"].required = False  # --backbone is its name here
    flags.set_defaults(batch_size=512)
    flags.add_argument("--backbone", help="the same as --model")
    flags.add_argument("--concept_set", type=path, required=True, help="the list: .txt with a concept a line, a JSON "
                       "list, or JSON of class -> concepts")
    flags.add_argument("--clip_name", default="ViT-B/16", help="a CLIP: OpenAI's name, open_clip's NAME:TAG, or a "
                       "file of one's own (NAME.json, open_clip's config, beside NAME.pt); runs in fp32")
    flags.add_argument("--clip_weights", help="its weights: a tag or a file; left out, OpenAI's, and for their names "
                       "(with a /) the file that the environment variable IIS_CLIP_WEIGHTS names, if any")
    flags.add_argument("--activation_dir", type=path, help="folder for all files; left out, the backbone's below "
                       "--save_root")
    flags.add_argument("--target_layer_name", help="of the visual script; taken here so that one YAML serves both")
    return flags


def main(args: argparse.Namespace | None = None) -> None:
    """Read the list, load both models, make sure that every file can be written, then embed."""
    args = args or parser().settings()
    args.model = args.backbone or args.model
    if args.model is None:
        raise UserError("say which backbone: --backbone NAME, or --config_yaml with one of model_configs/")
    from concept_library.concept_lists import read_concepts
    from extractor.backbone_flags import backbone_of, need_dataset
    from extractor.clip_files import embed_words, give, images_target
    from extractor.clip_sources import resolve
    from extractor.clip_towers import load_clip
    from extractor.embed import embed_together, ranks
    from extractor.jobs import folder_name, plan
    from extractor.stage_plans import tell_stage2
    from extractor.targets import prepared
    from iis.datasets import load_dataset, same_classes
    from iis.names import clip_label

    concepts, duplicates = read_concepts(args.concept_set)
    if duplicates:
        print(f"{args.concept_set.name}: {len(duplicates)} duplicates left out ({', '.join(duplicates[:5])}"
              f"{', …' if duplicates[5:] else ''})", file=sys.stderr)
    dataset = load_dataset(need_dataset(args, "this script"))
    sets = [dataset.images(split) for split in ("train", "val")]
    same_classes(sets[0].class_names, sets[1].class_names)
    weights = args.clip_weights or _from_environment(args.clip_name)
    resolve(args.clip_name, weights)  # a misspelt name is told before the backbone is loaded
    backbone, device = backbone_of(args)
    clip = load_clip(args.clip_name, weights, device, clip_label(args.clip_name, args.clip_weights))
    name = folder_name(args.model, backbone, args.precision, args.model_name)
    folder, shared = args.activation_dir or args.save_root / name, args.save_root / "clip"
    dry = "dry_run" in args
    clips = [images_target(clip, images, shared, folder, write=not dry) for images in sets]
    jobs = [plan(images, backbone, args.feature_layer, name, args.save_root, args.precision, place=folder,
                 write=not dry) for images in sets]
    if dry:
        print(f"dry run: {len(concepts):,} concepts of {args.concept_set} -> {len(concepts):,} x {clip.width} in "
              f"{folder}")
        for images, job, (target, _) in zip(sets, jobs, clips, strict=True):
            tell_stage2(images, [prepared(job.target(backbone)), prepared(target)], args.batch_size, args.workers,
                        device)
        return
    if ranks()[0] == 0:
        words = embed_words(clip, concepts, args.concept_set, shared, folder)
        write_settings(args, words.with_name(f"{words.name}.settings.yaml"))
    for images, job, (target, published) in zip(sets, jobs, clips, strict=True):
        embed_together(images, [job.target(backbone, args.batch_size if args.compile else 0), target],
                       args.batch_size, args.workers, device)
        if ranks()[0] == 0:
            give(target.file, published)


def _from_environment(clip_name: str) -> str | None:
    """OpenAI's file, where the environment says that it lies; other CLIPs are not looked for there."""
    openai = "/" in clip_name and ":" not in clip_name and Path(clip_name).suffix not in CLIP_FILES
    return os.environ.get("IIS_CLIP_WEIGHTS") or None if openai else None


if __name__ == "__main__":
    run_script(main)
