"""Stage 2 for words: CLIP's embeddings of concepts and images, and the backbone's representations of the images.

    cd extractor
    python textual_emb_extractor.py --dataset imagenet --concept_set ../concept_library/textual/imagenet_filtered.txt \\
        --backbone resnet50 --activation_dir ./embs/resnet50/ --feature_layer layer4

writes into --activation_dir imagenet_filtered_ViT-B16.pt, imagenet_{train,val}_clip_ViT-B16.pt and
imagenet_{train,val}_resnet50_layer4.pt. Files that exist already, of this script or the visual one, are kept; CLIP's
files are made once for all backbones (in embs/clip, linked from each folder). Every image is decoded once for CLIP
and the backbone. Killed and started again, it goes on where it was. A CLIP of your own: --clip_name my_clip.json.
ViT-B/16 is 600 MB, looked for in the caches, then downloaded; IIS_CLIP_WEIGHTS names a file that holds it.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.settings import EmbeddingSettings, backbone_of, backbone_to_plan, need_dataset
from iis.cli import positive, run_script, setting, write_settings
from iis.names import CLIP_FILES
from iis.runtime import UserError


@dataclass(kw_only=True)
class Settings(EmbeddingSettings):
    """Words and CLIP"""

    model: str | None = setting(None, "the backbone; --backbone is the published name", also=("--backbone",))
    batch_size: int = setting(512, "images at a time", type=positive, also=("-b",))
    concept_set: Path = setting(help="the list: .txt with a concept a line, a JSON list, or JSON of class -> concepts")
    clip_name: str = setting("ViT-B/16", "a CLIP: OpenAI's name, open_clip's NAME:TAG, or a file of your own "
                             "(NAME.json, open_clip's config, beside NAME.pt); runs in fp32")
    clip_weights: str | None = setting(None, "its weights: a tag or a file (default: OpenAI's; for OpenAI's names, "
                                       "with a /, the file in IIS_CLIP_WEIGHTS if set)")
    activation_dir: Path | None = setting(None, "folder for all files (default: the backbone's below --save_root)")
    dry_run: bool = setting(False, "print what would be made, with shapes, bytes and folders; make nothing")


def main(settings: Settings) -> None:
    """Read the list, load both models, make sure that every file can be written, then embed."""
    if settings.model is None:
        raise UserError("say which backbone: --backbone NAME, or --config_yaml with one of model_configs/")
    from concept_library.concept_lists import read_concepts
    from extractor.clip import embed_words, give, images_target, load_clip, resolve
    from extractor.embed import embed_together, folder_name, plan_target, print_targets, ranks
    from extractor.image_walk import dataset_images
    from iis.names import clip_label

    concepts, duplicates = read_concepts(settings.concept_set)
    if duplicates:
        print(f"{settings.concept_set.name}: {len(duplicates)} duplicates left out ({', '.join(duplicates[:5])}"
              f"{', …' if duplicates[5:] else ''})", file=sys.stderr)
    dry = settings.dry_run
    sets = dataset_images(need_dataset(settings, "this script"), ("train", "val"), dry)
    weights = settings.clip_weights or _from_environment(settings.clip_name)
    label = clip_label(settings.clip_name, settings.clip_weights)
    if not dry:
        resolve(settings.clip_name, weights)  # refuse a misspelt name before the backbone is loaded
    backbone, device = (backbone_to_plan if dry else backbone_of)(settings)
    name = folder_name(settings.model, backbone, settings.precision, settings.model_name)
    folder, shared = settings.activation_dir or settings.save_root / name, settings.save_root / "clip"
    targets = [plan_target(images, backbone, settings.feature_layer, name, settings.save_root, settings.precision,
                           place=folder, write=not dry, compiled=settings.batch_size if settings.compile else 0)
               for images in sets]
    if dry:
        for images, target in zip(sets, targets, strict=True):
            print_targets(images, [target], device)
        _print_clip(settings, weights, label, len(concepts), sets, shared)
        return
    clip = load_clip(settings.clip_name, weights, device, label)
    clips = [images_target(clip, images, shared, folder) for images in sets]
    if ranks()[0] == 0:
        listed = embed_words(clip, concepts, settings.concept_set, shared, folder)
        write_settings(settings, listed.with_name(f"{listed.name}.settings.yaml"))
    for images, target, (clip_target, published) in zip(sets, targets, clips, strict=True):
        embed_together(images, [target, clip_target], settings.batch_size, settings.workers, device)
        if ranks()[0] == 0:
            give(clip_target.file, published)


def _print_clip(settings: Settings, weights: str | None, label: str, concepts: int, sets: list, shared: Path) -> None:
    """The dry run of CLIP's files; only its config is read."""
    from extractor.clip import width_of
    from extractor.embed import print_file
    from iis.names import clip_images_file, clip_words_file

    try:
        width = width_of(settings.clip_name, weights)
    except UserError as error:
        print(f"dry run: the CLIP is not there yet, so its files are not counted: {error}")
        return
    print_file(clip_words_file(shared, settings.concept_set, label), concepts, width)
    for images in sets:
        print_file(clip_images_file(shared, images.dataset, images.split, label), len(images.labels), width)


def _from_environment(clip_name: str) -> str | None:
    """The file in IIS_CLIP_WEIGHTS, for OpenAI's names alone."""
    openai = "/" in clip_name and ":" not in clip_name and Path(clip_name).suffix not in CLIP_FILES
    return os.environ.get("IIS_CLIP_WEIGHTS") or None if openai else None


if __name__ == "__main__":
    run_script(main, Settings)
