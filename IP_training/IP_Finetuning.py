"""Fine-tune a backbone so that concepts explain it better: interpretability maximisation (paper, section 4.1, Eq. 8).

    cd IP_training
    python IP_Finetuning.py --model_config resnet50 --dataset imagenet --objective interpretability --seed 0
    python IP_Finetuning.py --model_config resnet50 --dataset imagenet --objective dense --seed 0      # its control

after stage 1. Writes into --save_dir: backbone.pth (a state dict that stage 2 takes as --weights), epochs.json,
finetuning.json (accuracies before and after), predictor.safetensors, settings.yaml. A killed run goes on after its last
epoch. On a CPU it trains on one thread (OMP_NUM_THREADS=N: on N): seeds and objectives can run beside each other.
"""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import count, positive, run_script, setting, write_settings
from iis.grid import check_ratios
from iis.names import elements_folder, slug
from iis.processes import thread_limit, threads_wanted
from iis.runtime import (
    ROOT,
    UserError,
    choose_device,
    claim_folder,
    float32_products,
    read_json,
    seed_of,
    write_json,
    write_whole,
)

RESULTS, EPOCHS, CHECKPOINT, STATE = "finetuning.json", "epochs.json", "backbone.pth", "state.pt"
NOT_IDENTITY = ("config_yaml", "model_config", "weights", "save_dir", "device", "workers", "cache_gb", "data_path",
                "tf32", "holdout")  # the last two are recorded where they are on


@dataclass(kw_only=True)
class Run:
    """Backbone, data and place"""

    config_yaml: str | None = setting(None, "YAML with any of these settings")
    model_config: str = setting("resnet50", "the backbone: a YAML of model_configs/")
    weights: str | None = setting(None, "other weights than that YAML's: a checkpoint, a tag, or none")
    dataset: str = setting("imagenet", "data set to fine-tune on; an original head with another number of classes is "
                           "replaced by a new one, fitted first")
    element_kind: Literal["segments", "patches"] = setting("segments", "the bank's elements")
    data_path: Path | None = setting(None, "stage 1's folder of elements (default: that of --dataset)")
    save_dir: Path | None = setting(None, "output folder (default IP_training/IP_Finetuning/MODEL/SETTING)")
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    workers: int = setting(8, "processes that read images, one per core at most", type=count)
    cache_gb: float = setting(4.0, "images of a split stay in memory where they take no more GB than this")
    tf32: bool = setting(False, "products and convolutions on CUDA in TF32: faster, 10 bits of mantissa; recorded")
    seed: int = setting(0, "of images, elements, predictor, batch order and augmentation", type=count)
    holdout: float = setting(0.0, "leave this fraction of the training images out, balanced over classes and seeded, "
                             "and evaluate on them instead of on validation: for choosing settings")


@dataclass(kw_only=True)
class Settings(Run):
    """Recipe: loss = CE(original head) + lambda * CE(interpretation predictor), paper, Eq. 8"""

    objective: Literal["interpretability", "dense", "weight_decay"] = setting(
        "interpretability", "Eq. 8; or a control: dense (lambda acts on the predictor alone), weight_decay (dense with "
        "weight decay)")
    interpretability_weight: float = setting(1.0, "lambda")
    sparsity: float = setting(0.1, "s of the predictor")
    num_concepts: int = setting(200, "M; fewer where the data set has fewer elements", type=positive)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "of backbone and original head; sgd has momentum 0.9")
    learning_rate: float = setting(0.01, "of backbone and original head; falls to 0 as a half cosine over all steps")
    ip_learning_rate: float = setting(0.01, "of the predictor: Adam, the same half cosine")
    weight_decay: float = setting(0.005, "of backbone and original head, under objective weight_decay only")
    epochs: int = setting(5, "passes over the images", type=positive)
    batch_size: int = setting(128, "images a step", type=positive)
    num_pictures: int = setting(0, "how many of the training images, balanced over classes and seeded; 0: all",
                                type=count)
    mirror: float = setting(0.5, "probability that an image is mirrored")
    shift: int = setting(0, "each image is moved by up to this many pixels in x and y, zeros from outside", type=count)

    def __post_init__(self) -> None:
        """Raise `UserError` for settings that make no sense, before anything is read."""
        check_ratios([self.sparsity])
        for name, fits, rule in (("learning_rate", self.learning_rate > 0, "above 0"),
                                 ("ip_learning_rate", self.ip_learning_rate > 0, "above 0"),
                                 ("interpretability_weight", self.interpretability_weight >= 0, "0 or more"),
                                 ("weight_decay", self.weight_decay >= 0, "0 or more"),
                                 ("cache_gb", self.cache_gb >= 0, "0 or more"),
                                 ("holdout", 0 <= self.holdout < 1, "0 or more, and below 1"),
                                 ("mirror", 0 <= self.mirror <= 1, "a probability, from 0 to 1")):
            if not fits:
                raise UserError(f"--{name} {getattr(self, name):g} must be {rule}")


def main(settings: Settings) -> Path:
    """Fine-tune, or find it done. Returns the output folder."""
    import torch

    from iis.backbones import configured_backbone
    from iis.datasets import folder_images, load_dataset, same_classes
    from iis.embedding_file import save_tensors
    from IP_training.finetune import Feed, FineTuning, chosen_elements, chosen_images, held_out

    dataset, device = load_dataset(settings.dataset), choose_device(settings.device)
    train, val = dataset.images("train"), dataset.images("val")
    same_classes(train.class_names, val.class_names)
    place = settings.data_path or elements_folder(dataset.name, settings.element_kind)
    if not place.is_dir():
        raise UserError(f"there are no visual elements at {place}: run concept_extract.sh with DATASET={dataset.name} "
                        "first, or name them with --data_path")
    train = chosen_images(train, settings.num_pictures, settings.seed)
    if settings.holdout:
        train, val = held_out(train, settings.holdout, settings.seed)
    backbone = configured_backbone(settings.model_config, settings.weights, device)
    if other_classes := backbone.num_classes != len(train.class_names):
        print(f"the original head of {backbone.model} knows {backbone.num_classes} classes and {dataset.name} has "
              f"{len(train.class_names)}: a new head, fitted to the backbone as it came, takes its place")
    pixels, names = chosen_elements(folder_images(place, dataset.name, "elements"), backbone.preprocessing,
                                    settings.num_concepts, settings.seed)
    if len(names) < settings.num_concepts:
        print(f"bank: {len(names)} concepts, all the elements there are, instead of {settings.num_concepts}")
    identity = {**{key: value for key, value in sorted(vars(settings).items()) if key not in NOT_IDENTITY},
                "model": backbone.model, "weights": backbone.weights, "weights_hash": backbone.weights_hash,
                "preprocessing": backbone.preprocessing, "dataset": dataset.name, "num_concepts": len(names),
                "n_train": len(train), "n_val": len(val), "elements_hash": f"{seed_of(*names):016x}",
                **{name: value for name in ("tf32", "holdout") if (value := getattr(settings, name))},
                **({"new_head": len(train.class_names)} if other_classes else {})}
    folder = settings.save_dir or default_folder(settings, dataset.name, len(names))
    claim_folder(folder, identity, "a fine-tuned backbone")
    if (folder / RESULTS).exists():
        print(f"fine-tuning: done before, {outcome(read_json(folder / RESULTS))} ({folder})")
        return folder
    write_settings(settings, folder / "settings.yaml")
    started = time.monotonic()
    feeds = [Feed(part, backbone.preprocessing, settings.workers, settings.cache_gb) for part in (train, val)]
    # On a CPU one thread: two are a fifth faster on a small net, and beside busy neighbours three times as slow.
    threads = thread_limit(threads_wanted()) if device.type == "cpu" else nullcontext()
    with threads, float32_products(settings.tf32):
        run = FineTuning(backbone, *feeds, pixels, settings, device, new_head=other_classes)
        run.run(folder / STATE, lambda log: write_json(folder / EPOCHS, log))
        bank_MD = run.bank()
    weights = {name: value.detach().cpu().contiguous() for name, value in run.module.state_dict().items()}
    write_whole(folder / CHECKPOINT, lambda temporary: torch.save(weights, temporary))
    save_tensors(folder / "predictor.safetensors", {**run.predictor.state_of(0), "bank": bank_MD})
    results = {**identity, "before": run.log[0], "after": run.log[-1], "elements": names,
               "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / RESULTS, results)  # last: what it says is done is there
    (folder / STATE).unlink(missing_ok=True)
    print(f"fine-tuning: {outcome(results)}, {results['seconds']:.1f} s; written: {folder}")
    return folder


def outcome(results: dict[str, Any]) -> str:
    """The result of a run, in a line."""
    before, after = results["before"], results["after"]
    held = f" on {results['n_val']} held-out training images" if results.get("holdout") else ""
    head = "new head" if results.get("new_head") else "original head"
    return (f"{results['objective']}, seed {results['seed']}{held}: {head} {100 * before['dense_top1']:.2f} -> "
            f"{100 * after['dense_top1']:.2f} %, predictor {100 * before['ip_top1']:.2f} -> "
            f"{100 * after['ip_top1']:.2f} % (M = {results['num_concepts']}, s = {results['sparsity']:g})")


def default_folder(settings: Settings, dataset: str, num_concepts: int) -> Path:
    """IP_training/IP_Finetuning/MODEL/… with what tells the usual settings apart; claim_folder refuses the rest."""
    parts = [dataset, settings.element_kind, settings.objective, f"M{num_concepts}", f"s{settings.sparsity:g}",
             f"lambda{settings.interpretability_weight:g}", settings.num_pictures and f"n{settings.num_pictures}",
             f"epochs{settings.epochs}", settings.holdout and f"holdout{settings.holdout:g}", f"seed{settings.seed}",
             settings.tf32 and "tf32"]
    name = Path(settings.model_config).name.removesuffix(".yaml")
    return ROOT / "IP_training" / "IP_Finetuning" / slug(name) / slug("_".join(filter(None, parts)))


if __name__ == "__main__":
    run_script(main, Settings)
