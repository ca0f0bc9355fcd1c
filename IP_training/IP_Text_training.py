"""Train interpretation predictors on a Text bank: words that CLIP sees in the images (paper, section 3; LF-CBM).

    cd IP_training
    python IP_Text_training.py --dataset imagenet --concept_set ../concept_library/textual/imagenet_filtered.txt \\
        --backbone resnet50 --activation_dir ../extractor/embs/resnet50/ --feature_layer layer4 --sparsity_ratio

after extractor/textual_emb_extractor.py. With --sparsity_ratio activations are sparsified and the whole grid trains, as
for every bank (one ratio with --sparsity_ratio_value); without it, LF-CBM's own final layer: sparse weights, by the
elastic net, written to elastic_net.json.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from iis.cli import disk, print_plan, run_script, setting, write_settings
from iis.embedding_file import save_tensors
from iis.processes import in_processes, jobs_that_fit
from iis.runtime import UserError, choose_device, float32_products, write_json
from IP_training import elastic_net
from IP_training.banks import MakeBank
from IP_training.inputs import Inputs, load_inputs
from IP_training.run import activations, claimed, identity_of, seed_of_run, train_bank
from IP_training.text_bank import TextSettings, identity_of_text, load_text_inputs, words


@dataclass(kw_only=True)
class Settings(TextSettings):
    """Final layer (published flags)"""

    num_concepts: int | None = setting(None, "keep the M concepts of largest validation similarity (default: all that "
                                       "pass)")
    sparsity_ratio: bool = setting(False, "sparsify activations, without a weight penalty; left out, the elastic-net "
                                   "layer")
    sparsity_ratio_value: float | None = setting(None, "one ratio instead of the whole grid")
    lam: float = setting(0.0007, "elastic net: weight of the penalty")
    n_iters: int = setting(1000, "elastic net: most passes over train")
    saga_batch_size: int = setting(256, "accepted and not needed: the elastic net takes the whole set in a step")

    def __post_init__(self) -> None:
        if self.sparsity_ratio_value is not None:
            self.ratios, self.sparsity_ratio = (self.sparsity_ratio_value,), True
        super().__post_init__()
        if not self.lam > 0:
            raise UserError(f"--lam {self.lam:g}: the penalty must be above 0")


def main(settings: Settings) -> Path:
    """Build the bank of each seed and train the grid, or the elastic-net layer. Returns the folder of the results."""
    inputs = load_inputs(settings, with_elements=False)
    text = load_text_inputs(settings, inputs)
    make_bank, identity = words(settings, inputs, text, settings.num_concepts), identity_of_text(settings, text)
    most_concepts = settings.num_concepts or len(text.words)
    if settings.sparsity_ratio:
        return train_bank(settings, "Text", inputs, make_bank, settings.num_concepts, identity, most_concepts)
    return train_elastic_net(settings, inputs, make_bank, most_concepts, identity)


def train_elastic_net(settings: Settings, inputs: Inputs, make_bank: MakeBank, most_concepts: int,
                      bank_settings: dict[str, Any]) -> Path:
    """Fit one layer per seed, each in a process of its own; write elastic_net.json (accuracy, non-zero weights,
    objective) and the weights. most_concepts: what M can be, for the memory.

    Activations are standardised by the moments of train, because one lam treats all concepts alike.
    """
    identity = {**identity_of(settings, "Text", settings.num_concepts, inputs, bank_settings),
                "final_layer": "elastic net", "lam": settings.lam, "n_iters": settings.n_iters}
    usual = settings.default_folder(identity)
    folder = settings.save_dir or usual.with_name(f"{usual.name}_elastic_lam{settings.lam:g}")
    if settings.dry_run:
        print_plan("stage 3, elastic net on a Text bank", {
            "shapes": f"N = {len(inputs.train):,} + {len(inputs.val):,} images, D = {inputs.train.width}, "
                      f"C = {inputs.num_classes}; at most {settings.n_iters} passes for each of {settings.seeds} seeds",
            "disk": disk(2e6 * settings.seeds, folder)})
        return folder
    with claimed(folder, identity, "elastic_net.json"), float32_products(settings.tf32):
        write_settings(settings, folder / "settings.yaml")
        device = choose_device(settings.device)
        tasks = [lambda _, number=number: fit_seed(settings, inputs, make_bank, number, device, folder)
                 for number in settings.seed_numbers]
        memory = elastic_net.bytes_of_fit(len(inputs.train) + len(inputs.val), inputs.train.width, most_concepts,
                                          inputs.num_classes)
        # On a GPU one after another: a forked process cannot use it.
        jobs = jobs_that_fit(len(tasks), memory, settings.jobs if device.type == "cpu" else 1)
        found = dict(in_processes(tasks, jobs))
        results = [found[index] for index in range(len(tasks))]
        write_json(folder / "elastic_net.json", {"identity": identity, "results": results})
    print(f"written: {folder}/elastic_net.json")
    return folder


def fit_seed(settings: Settings, inputs: Inputs, make_bank: MakeBank, number: int, device: torch.device,
             folder: Path) -> dict[str, Any]:
    """Make the bank of a seed, fit its layer and write elastic_net_seed`number`.safetensors; what is measured."""
    started, seed = time.monotonic(), seed_of_run(settings, number, len(inputs.train))
    bank = make_bank(seed)
    normaliser, x_train, x_val = activations(inputs, bank, seed, device)
    rows = slice(None) if seed.train_rows is None else seed.train_rows
    fit = elastic_net.fit_elastic_net(x_train[rows], inputs.train.labels_N[rows].to(device), inputs.num_classes,
                                      settings.lam, n_iters=settings.n_iters)
    correct = (x_val @ fit.W_CM.T + fit.b_C).argmax(1) == inputs.val.labels_N.to(device)
    nonzero = int((fit.W_CM != 0).sum())
    result = {"seed": number, "top1": float(correct.double().mean()), "bank_size": len(bank), "nonzero": nonzero,
              "nec": nonzero / inputs.num_classes, "objective": fit.objective, "epochs": fit.passes,
              "converged": fit.converged, "seconds": round(time.monotonic() - started, 2)}
    save_tensors(folder / f"elastic_net_seed{number}.safetensors", {
        "bank": bank.vectors_MD, "weight": fit.W_CM, "bias": fit.b_C, "mean": normaliser.mean_M,
        "std": normaliser.std_M})
    print(f"elastic net, seed {number}: top-1 {100 * result['top1']:.2f} %, {nonzero} non-zero weights "
          f"({result['nec']:.1f} a class) of {len(bank)} concepts, {fit.passes} passes"
          + ("" if fit.converged else ", not converged (--n_iters)"))
    return result


if __name__ == "__main__":
    run_script(main, Settings)
