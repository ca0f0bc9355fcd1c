"""Stage 2: embed visual elements with a backbone, and, when asked, the data set's own images.

    cd extractor
    python visual_element_emb_extractor.py --config_yaml ../model_configs/resnet50_IMAGENET1K_V1.yaml \\
        --model resnet50 --target_layer_name fc --weights IMAGENET1K_V1 --data-path ../concept_library/visual/segments

writes embs/resnet50/visual_element_emb.pkl. `--dataset imagenet --representations train,val` embeds those images
too. `--layers blocks.4,blocks.8,head_input` takes three layers in one pass over the images: the first two into folders
MODEL__blocks.4 and MODEL__blocks.8, the head's input where it always goes. `--check` compares the backbone's original
head with its published top-1 and does nothing else. Killed and started again, it goes on where it was. Several GPUs:
torchrun --nproc-per-node N visual_element_emb_extractor.py ...
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.settings import EmbeddingSettings, backbone_of, backbone_to_plan, need_dataset
from iis.cli import parse, run_script, setting, words, write_settings
from iis.names import HEAD_INPUT, layer_label
from iis.runtime import UserError

if TYPE_CHECKING:
    from extractor.embed import Target

# What --together takes from the first configuration: the images, the place and the batches.
SHARED = ("dataset", "data_path", "representations", "element_kind", "save_root", "batch_size", "workers", "device",
          "precision", "tf32", "compile", "dry_run")


def splits(text: str) -> tuple[str, ...]:
    """`train`, `val` or both, separated by a comma."""
    found = words(text)
    if set(found) - {"train", "val"}:  # none is what a YAML holds where the flag was left out
        raise argparse.ArgumentTypeError(f"{text!r} is not train, val or train,val")
    return found


@dataclass(kw_only=True)
class Settings(EmbeddingSettings):
    """Visual elements and representations"""

    representations: tuple[str, ...] = setting((), "embed these images of --dataset too", type=splits,
                                               metavar="train,val")
    together: tuple[str, ...] = setting((), "other configurations of model_configs/ to embed the same images with, "
                                        "each image decoded once for all", metavar="A,B")
    layers: tuple[str, ...] = setting((), "several layers in one pass over the images, each in the folder MODEL__LAYER "
                                      "of its own, and head_input in MODEL (default: the one layer named otherwise)",
                                      metavar="A,B")
    element_kind: str | None = setting(None, "for elements made elsewhere, without a manifest",
                                       choices=("segments", "patches"))
    check: bool = setting(False, "only compare the backbone's original head on the val images of --dataset with the "
                          "published top-1 of its weights")
    dry_run: bool = setting(False, "print what would be made, with shapes, bytes and folders; make nothing")


def main(settings: Settings) -> None:
    """Find the images, load the backbones, make sure that every file can be written, then embed."""
    if settings.check:
        from extractor import check_backbone

        check_backbone.main(settings)
        return
    from extractor.embed import embed_together, print_targets, ranks

    sources, dry = _sources(settings), settings.dry_run
    shared = {key: getattr(settings, key) for key in SHARED}
    everyone = [settings, *(replace(parse(Settings, ["--config_yaml", name]), **shared) for name in settings.together)]
    loaded = [(backbone_to_plan if dry else backbone_of)(one) for one in everyone]
    device = loaded[0][1]
    files = [(one, backbone, layer) for one, (backbone, _) in zip(everyone, loaded, strict=True)
             for layer in one.layers or (None,)]
    planned = [[_plan(*file, images, elements) for file in files] for images, elements in sources]
    for (images, _), targets in zip(sources, planned, strict=True):
        if dry:
            print_targets(images, targets, device)
            continue
        for (one, *_), target in zip(files, targets, strict=True):
            if ranks()[0] == 0:
                write_settings(one, target.file.with_name(f"{target.file.name}.settings.yaml"))
        embed_together(images, targets, settings.batch_size, settings.workers, device)


def _plan(one: Settings, backbone: Any, layer: str | None, images: Any, elements: dict[str, Any] | None) -> "Target":
    """The file of these images at one of --layers; None, and the head's input, are what the settings name otherwise."""
    from extractor.embed import folder_name, plan_target

    if len(set(one.layers)) < len(one.layers):
        raise UserError(f"--layers {','.join(one.layers)} names a layer twice; leave one out")
    usual = one.feature_layer if elements is None else one.target_layer_name
    folder = layer_label(folder_name(one.model, backbone, one.precision, one.model_name), layer)
    target = plan_target(images, backbone, usual if layer in (None, HEAD_INPUT) else layer, folder, one.save_root,
                         one.precision, elements, write=not one.dry_run,
                         compiled=one.batch_size if one.compile else 0)
    if layer == HEAD_INPUT and target.node.name != HEAD_INPUT:
        raise UserError(f"--layers has {HEAD_INPUT}, whose files are named after the layer {usual!r} of the settings, "
                        "and that is an earlier layer: name the head there, or leave it out")
    return target


def _sources(settings: Settings) -> list[tuple[Any, dict[str, Any] | None]]:
    """What to embed: images, and stage 1's settings (None for the data set's own images)."""
    from extractor.image_walk import dataset_images, elements_of

    sources, dry = [], settings.dry_run
    if settings.data_path is not None:
        sources.append(elements_of(settings.data_path, settings.element_kind, settings.dataset, dry))
    if settings.representations:
        found = dataset_images(need_dataset(settings, "--representations"), settings.representations, dry)
        sources += [(images, None) for images in found]
    if not sources:
        raise UserError("say what to embed: --data-path FOLDER (stage 1's elements), --representations train,val with "
                        "--dataset NAME, or both")
    return sources


if __name__ == "__main__":
    run_script(main, Settings)
