"""Fine-tune a backbone so that it can be told in concepts: interpretability maximisation (paper, section 4.1, Eq. 8).

    cd IP_training
    python IP_Finetuning.py --model_config resnet50 --dataset imagenet --objective interpretability --seed 0
    python IP_Finetuning.py --model_config resnet50 --dataset imagenet --objective dense --seed 0      # its control

after stage 1. All settings and their defaults: finetuning.yaml (another with --config_yaml). Writes into --save_dir:
backbone.pth (a state dict that stage 2 takes as --weights), epochs.json, finetuning.json (accuracies before and
after), predictor.safetensors, settings.yaml. A killed run goes on after its last epoch.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, count, path, positive, run_script, write_settings
from iis.names import elements_folder, slug
from iis.runtime import ROOT, UserError, claim_folder, read_json, seed_of, write_json, write_whole

DEFAULTS = ROOT / "IP_training" / "finetuning.yaml"
OBJECTIVES = ("interpretability", "dense", "weight_decay")
RESULTS, EPOCHS, CHECKPOINT, STATE = "finetuning.json", "epochs.json", "backbone.pth", "state.pt"
NOT_IDENTITY = ("config_yaml", "model_config", "weights", "save_dir", "device", "workers", "cache_gb", "data_path")


def parser() -> ScriptParser:
    """The flags of this script; the recipe's defaults are those of finetuning.yaml."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--config_yaml", help=f"YAML with any of these settings (default: {DEFAULTS.name})")
    script.add_argument("--model_config", default="resnet50", help="the backbone: a YAML of model_configs/")
    script.add_argument("--weights", help="other weights than that YAML's: a checkpoint, a tag, or none")
    script.add_argument("--dataset", default="imagenet", help="data set to fine-tune on; the original head must know its "
                      "classes")
    script.add_argument("--element_kind", default="segments", choices=("segments", "patches"), help="the bank's elements")
    script.add_argument("--data_path", type=path, help="stage 1's folder of elements (default: that of --dataset)")
    script.add_argument("--save_dir", type=path, help="output folder (default IP_training/IP_Finetuning/MODEL/SETTING)")
    script.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    script.add_argument("--workers", type=count, default=8, help="processes that read images, one per core at most")
    script.add_argument("--cache_gb", type=float, default=4.0, help="images of a split stay in memory where they take "
                      "no more than this")
    script.add_argument("--seed", type=count, default=0, help="of images, elements, predictor, batch order and "
                      "augmentation")
    recipe = script.add_argument_group(f"recipe ({DEFAULTS.name} says more)")
    recipe.add_argument("--objective", choices=OBJECTIVES, help="Eq. 8, or one of its controls")
    recipe.add_argument("--optimizer", choices=("sgd", "adamw"), help="of backbone and original head")
    for name, kind, meaning in (
            ("interpretability_weight", float, "lambda"), ("sparsity", float, "s of the predictor"),
            ("num_concepts", positive, "M"), ("learning_rate", float, "of backbone and original head"),
            ("ip_learning_rate", float, "of the predictor"),
            ("weight_decay", float, "of backbone and original head, under that objective"),
            ("epochs", positive, "passes over the images"), ("batch_size", positive, "images a step"),
            ("num_pictures", count, "how many of the training images; 0: all"),
            ("mirror", float, "probability that an image is mirrored"),
            ("shift", count, "pixels that an image is moved by at most")):
        recipe.add_argument(f"--{name}", type=kind, help=meaning)
    script.take_yaml(DEFAULTS)
    return script


def main(args: argparse.Namespace) -> Path:
    """Fine-tune, or find it done. Returns the output folder."""
    check(args)
    from iis.backbones import configured_backbone
    from iis.datasets import load_dataset
    from iis.runtime import choose_device
    from IP_training.finetune_images import chosen_elements

    dataset, device = load_dataset(args.dataset), choose_device(args.device)
    train, val, elements = image_sets(args, dataset)
    backbone = configured_backbone(args.model_config, args.weights, device)
    if backbone.num_classes != len(train.class_names):
        raise UserError(f"the original head of {backbone.model} ({backbone.weights}) knows {backbone.num_classes} classes "
                        f"and {dataset.name} has {len(train.class_names)}: fine-tune on the data set it was trained on")
    pixels, names = chosen_elements(elements, backbone.preprocessing, args.num_concepts, args.seed)
    if len(names) < args.num_concepts:
        print(f"bank: {len(names)} concepts, all the elements there are, instead of {args.num_concepts}")
    identity = {**{key: value for key, value in sorted(vars(args).items()) if key not in NOT_IDENTITY},
                "model": backbone.model, "weights": backbone.weights, "weights_hash": backbone.weights_hash,
                "preprocessing": backbone.preprocessing, "dataset": dataset.name, "num_concepts": len(names),
                "n_train": len(train), "n_val": len(val), "elements_hash": f"{seed_of(*names):016x}"}
    folder = args.save_dir or default_folder(args, dataset.name, len(names))
    claim_folder(folder, identity, "a fine-tuned backbone")
    if (folder / RESULTS).exists():
        print(f"fine-tuning: done before, {sentence(read_json(folder / RESULTS))} ({folder})")
        return folder
    write_settings(args, folder / "settings.yaml")
    started = time.monotonic()
    run = fine_tune(args, backbone, train, val, pixels, device, folder)
    results = {**identity, "before": run.log[0], "after": run.log[-1], "elements": names,
               "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / RESULTS, results)  # last: what it says is done is there
    (folder / STATE).unlink(missing_ok=True)
    print(f"fine-tuning: {sentence(results)}, {results['seconds']:.1f} s; written: {folder}")
    return folder


def image_sets(args: argparse.Namespace, dataset: Any) -> tuple[Any, Any, Any]:
    """The images to train and to validate on, and the visual elements."""
    from iis.datasets import folder_images, same_classes
    from IP_training.finetune_images import chosen_images

    train, val = dataset.images("train"), dataset.images("val")
    same_classes(train.class_names, val.class_names)
    place = args.data_path or elements_folder(dataset.name, args.element_kind)
    if not place.is_dir():
        raise UserError(f"there are no visual elements at {place}: run concept_extract.sh with DATASET={dataset.name} "
                        "first, or name them with --data_path")
    return (chosen_images(train, args.num_pictures, args.seed), val,
            folder_images(place, dataset.name, "elements"))


def fine_tune(args: argparse.Namespace, backbone: Any, train: Any, val: Any, elements: Any, device: Any,
              folder: Path) -> Any:
    """Run all epochs; write backbone.pth and predictor.safetensors (weight, bias, scale, shift and bank, as stage 3
    names them). Returns the finished `FineTuning`."""
    from dataclasses import fields

    import torch

    from iis.embedding_file import save_tensors
    from IP_training.finetune import FineTuning, Recipe
    from IP_training.finetune_images import Feed

    feeds = [Feed(part, backbone.preprocessing, args.workers, args.cache_gb) for part in (train, val)]
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    run = FineTuning(backbone, *feeds, elements, recipe, device, len(train.class_names))
    run.run(folder / STATE, lambda log: write_json(folder / EPOCHS, log))
    weights = {name: value.detach().cpu().contiguous() for name, value in run.module.state_dict().items()}
    write_whole(folder / CHECKPOINT, lambda temporary: torch.save(weights, temporary))
    save_tensors(folder / "predictor.safetensors", {**run.predictor.state_of(0), "bank": run.bank()})
    return run


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for settings that make no sense, before anything is read."""
    from iis.grid import check_ratios

    check_ratios([args.sparsity])
    for name in ("learning_rate", "ip_learning_rate"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} {getattr(args, name):g} must be above 0")
    for name in ("interpretability_weight", "weight_decay", "cache_gb"):
        if not getattr(args, name) >= 0:
            raise UserError(f"--{name} {getattr(args, name):g} must be 0 or more")
    if not 0 <= args.mirror <= 1:
        raise UserError(f"--mirror {args.mirror:g} must lie between 0 and 1: it is a probability")


def sentence(results: dict[str, Any]) -> str:
    """What came of a run, in a line."""
    before, after = results["before"], results["after"]
    return (f"{results['objective']}, seed {results['seed']}: original head {100 * before['dense_top1']:.2f} -> "
            f"{100 * after['dense_top1']:.2f} %, predictor {100 * before['ip_top1']:.2f} -> "
            f"{100 * after['ip_top1']:.2f} % (M = {results['num_concepts']}, s = {results['sparsity']:g})")


def default_folder(args: argparse.Namespace, dataset: str, num_concepts: int) -> Path:
    """IP_training/IP_Finetuning/MODEL/… with what tells the usual settings apart; claim_folder refuses the rest."""
    parts = [dataset, args.element_kind, args.objective, f"M{num_concepts}", f"s{args.sparsity:g}",
             f"lambda{args.interpretability_weight:g}", *([f"n{args.num_pictures}"] if args.num_pictures else []),
             f"epochs{args.epochs}", f"seed{args.seed}"]
    name = Path(args.model_config).name.removesuffix(".yaml")
    return ROOT / "IP_training" / "IP_Finetuning" / slug(name) / slug("_".join(parts))


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
