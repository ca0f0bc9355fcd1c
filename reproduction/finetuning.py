"""Fine-tune and measure all that the fine-tuning table needs: objectives × seeds, and ablations of M and s.

    python reproduction/finetuning.py finetuning_shapes      # reproduction/sweeps/finetuning_shapes.yaml; or a file
    python reproduction/finetuning_table.py --sweep finetuning_shapes

For each cell: IP_training/IP_Finetuning.py, then the IIS of the fine-tuned backbone on the very images it was
fine-tuned on, with fresh embeddings, bank and heads (stages 2 and 3). The backbone as it came is measured the same way.
Finished cells are skipped; one that fails stops no other. On a CPU as many cells run at a time as there are cores, a
process each. results/finetuning/NAME/runs.json is the index.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import from_mapping, read_yaml, run_script, setting
from iis.processes import jobs_that_fit
from iis.results import LEDGER
from iis.runtime import UserError, claim_folder, make_output_folder, nearest
from reproduction.lib.finetuned import BEFORE, FOLDER, INDEX, NAMES
from reproduction.lib.sweeps import call_script, checked, find_sweep, run_cells

OBJECTIVES = tuple(name for name in NAMES if name != BEFORE)
MANIFEST = ("model_config", "weights", "dataset", "element_kind", "recipe", "measure")  # what a folder is made with
KEYS = (*MANIFEST, "seeds", "objectives", "ablations")


@dataclass(kw_only=True)
class Settings:
    """What runs, and where."""

    sweep: str = setting(help="name of a YAML in reproduction/sweeps/, or a file", positional=True)
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    only: str | None = setting(None, "only cells with this word in their name", metavar="WORD")
    save_dir: Path | None = setting(None, "output folder (default: results/finetuning/NAME)")


def main(settings: Settings) -> None:
    """Run every cell that is not finished; the index is kept up to date."""
    file = find_sweep(settings.sweep)
    plan = read_plan(file)
    root = make_output_folder(settings.save_dir or FOLDER / file.stem)
    claim_folder(root, {key: plan[key] for key in MANIFEST}, "backbones")
    run_cells(file.stem, cells_of(plan), ["name"],
              lambda cell: run_cell(plan, cell, root / cell["name"], settings.device),
              lambda cell: root / cell["name"] / "iis" / LEDGER, root / INDEX, settings.only,
              jobs_of=lambda cells: jobs_of(plan, cells, settings.device))


def read_plan(file: Path) -> dict[str, Any]:
    """The YAML with defaults filled in. Raises `UserError` for unknown keys or objectives, or what is missing."""
    given = {key: value for key, value in checked(read_yaml(file), str(file), KEYS).items() if value is not None}
    plan = {"weights": None, "element_kind": "segments", "seeds": 3, "objectives": list(OBJECTIVES), "ablations": {},
            "recipe": {}, "measure": {}, **given}
    for key in ("model_config", "dataset"):
        if key not in plan:
            raise UserError(f"{file} needs a line `{key}: NAME`")
    for name, known in (("recipe", None), ("measure", None), ("ablations", ("num_concepts", "sparsity", "seeds"))):
        checked(plan[name], f"{file}: {name}", known)
    for name, value in {"objectives": plan["objectives"], **plan["ablations"]}.items():
        if name != "seeds" and (not isinstance(value, list) or not value):
            raise UserError(f"{file}: {name} should be a list, and is {value!r}")
    for name, value in (("seeds", plan["seeds"]), ("ablations: seeds", plan["ablations"].get("seeds", 3))):
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: {name} should be a whole number above 0, and is {value!r}")
    from IP_training import IP_Finetuning, IP_Prototype_training

    ablated = [{name: value} for name in ("num_concepts", "sparsity") for value in plan["ablations"].get(name, [])]
    for own in ({}, *ablated):  # what every cell would fail on, before the first one runs
        if None in own.values():
            raise UserError(f"{file}: ablations hold an empty value")
        from_mapping(IP_Finetuning.Settings, {**plan["recipe"], **own}, f"{file}: recipe")
    from_mapping(IP_Prototype_training.Settings, plan["measure"], f"{file}: measure")
    for objective in plan["objectives"]:
        if objective not in OBJECTIVES:
            raise UserError(f"{file}: the objective {objective} is not known{nearest(objective, OBJECTIVES)}")
    return plan


def cells_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What to run: the backbone as it came, once where all images are used and else per seed (each seed has its own
    images); objectives × seeds; then the ablations that are not among them."""
    from IP_training import IP_Finetuning

    usual, ablations = vars(IP_Finetuning.Settings()) | plan["recipe"], plan["ablations"]
    recipe, seeds = {name: usual[name] for name in ("num_concepts", "sparsity")}, range(plan["seeds"])
    cells = [(BEFORE, seed, dict.fromkeys(recipe)) for seed in (seeds if usual["num_pictures"] else [0])]
    cells += [(objective, seed, recipe) for seed in seeds for objective in plan["objectives"]]
    cells += [("interpretability", seed, {**recipe, name: value}) for name in recipe
              for value in ablations.get(name, []) for seed in range(ablations.get("seeds", 3))]
    named = {}  # an ablation may list the usual value
    for objective, seed, own in cells:
        middle = "" if objective == BEFORE else f"_M{own['num_concepts']}_s{own['sparsity']:g}"
        name = f"{objective}{middle}_seed{seed}"
        named[name] = {"name": name, "objective": objective, "seed": seed, **own}
    return list(named.values())


def jobs_of(plan: dict[str, Any], cells: int, device_name: str | None) -> int:
    """How many of so many cells run at a time: as many processes as fit on a CPU, one after another on a GPU."""
    from iis.backbones import configured_backbone
    from iis.datasets import load_dataset
    from iis.runtime import choose_device
    from IP_training import IP_Finetuning

    if choose_device(device_name, silent=True).type != "cpu":
        return 1
    recipe, dataset = vars(IP_Finetuning.Settings()) | plan["recipe"], load_dataset(plan["dataset"])
    side = configured_backbone(plan["model_config"], plan["weights"], "cpu").preprocessing["crop"]
    train, val = len(dataset.images("train")), len(dataset.images("val"))
    held = sum(min(3 * side * side * images, 1e9 * recipe["cache_gb"])
               for images in (min(recipe["num_pictures"] or train, train), val))
    return jobs_that_fit(cells, held + 2**30)  # 1 GiB for a step


def run_cell(plan: dict[str, Any], cell: dict[str, Any], folder: Path, device: str | None) -> Path:
    """Fine-tune (unless it is the backbone as it came), embed, and train the predictors of stage 3. Returns `folder`,
    where all of it lies."""
    from IP_training import IP_Finetuning, IP_Prototype_training

    weights = plan["weights"]
    if cell["objective"] != BEFORE:
        call_script(IP_Finetuning, {
            **plan["recipe"], **{name: cell[name] for name in ("objective", "seed", "num_concepts", "sparsity")},
            **{name: plan[name] for name in ("model_config", "weights", "dataset", "element_kind")}, "device": device,
            "save_dir": folder})
        weights = str(folder / IP_Finetuning.CHECKPOINT)
    train, val, elements = embed(plan, cell["seed"], weights, folder / "embeddings", device)
    call_script(IP_Prototype_training, {
        "model_name": f"{plan['model_config']}_{cell['name']}", "dataset": plan["dataset"], "train_pt": train,
        "val_pt": val, "concept_path": elements, "device": device, **plan["measure"], "save_dir": folder / "iis"})
    return folder


def embed(plan: dict[str, Any], seed: int, weights: str | None, folder: Path, device_name: str | None) -> list[Path]:
    """Stage 2 for the fine-tuning images of a seed, the validation images and the elements: the three files."""
    from extractor.embed import embed_together, plan_target
    from extractor.image_walk import read_stage1
    from iis.backbones import configured_backbone
    from iis.datasets import folder_images, load_dataset
    from iis.layers import HEAD_INPUT
    from iis.names import elements_folder
    from iis.runtime import choose_device
    from IP_training.finetune import chosen_images

    dataset, device = load_dataset(plan["dataset"]), choose_device(device_name)
    backbone = configured_backbone(plan["model_config"], weights, device)
    place = elements_folder(dataset.name, plan["element_kind"])
    stage1 = {key: value for key, value in (read_stage1(place) or {"kind": plan["element_kind"]}).items()
              if key != "classes"}
    recipe = plan["recipe"]
    sources = [(chosen_images(dataset.images("train"), recipe.get("num_pictures", 0), seed), None),
               (dataset.images("val"), None), (folder_images(place, dataset.name, "elements"), stage1)]
    targets = [plan_target(images, backbone, HEAD_INPUT, folder.parent.name, folder, elements=elements, place=folder)
               for images, elements in sources]
    for (images, _), target in zip(sources, targets, strict=True):
        embed_together(images, [target], 256, recipe.get("workers", 8), device)
    return [target.file for target in targets]


if __name__ == "__main__":
    run_script(main, Settings)
