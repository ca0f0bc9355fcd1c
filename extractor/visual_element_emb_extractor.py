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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.settings import EmbeddingSettings, backbone_of, backbone_to_plan, need_dataset
from iis.cli import parse, run_script, setting, words, write_settings
from iis.runtime import UserError

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
    from extractor.embed import embed_together, folder_name, plan_target, print_targets, ranks

    sources, dry = _sources(settings), settings.dry_run
    shared = {key: getattr(settings, key) for key in SHARED}
    everyone = [settings, *(replace(parse(Settings, ["--config_yaml", name]), **shared) for name in settings.together)]
    loaded = [(backbone_to_plan if dry else backbone_of)(one) for one in everyone]
    device = loaded[0][1]
    planned = [[plan_target(images, backbone, one.feature_layer if elements is None else one.target_layer_name,
                            folder_name(one.model, backbone, one.precision, one.model_name), one.save_root,
                            one.precision, elements, write=not dry, compiled=one.batch_size if one.compile else 0)
                for one, (backbone, _) in zip(everyone, loaded, strict=True)]
               for images, elements in sources]
    for (images, _), targets in zip(sources, planned, strict=True):
        if dry:
            print_targets(images, targets, device)
            continue
        for one, target in zip(everyone, targets, strict=True):
            if ranks()[0] == 0:
                write_settings(one, target.file.with_name(f"{target.file.name}.settings.yaml"))
        embed_together(images, targets, settings.batch_size, settings.workers, device)


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
