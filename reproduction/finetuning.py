"""Fine-tune and measure all that the fine-tuning table needs: objectives × seeds, and ablations of M and s.

    python reproduction/finetuning.py finetuning_shapes      # reproduction/sweeps/finetuning_shapes.yaml; or a file
    python reproduction/finetuning_table.py --sweep finetuning_shapes

First, with `tuning` in the YAML, every objective's learning rate: each is tried on a part of the training images, and
the one whose original head is best on the rest, held out, is taken. Validation images have no say in it. Then, for each
cell: IP_training/IP_Finetuning.py on all its images with that rate, and the IIS of the fine-tuned backbone on the very
images it was fine-tuned on, with fresh embeddings, bank and heads (stages 2 and 3). The backbone as it came is measured
the same way.

Every seed is measured with seeds of stage 3 of its own, the same in all its cells. Differences of two cells of a seed
are then independent from seed to seed, as a paired test assumes. (Measured once, the backbone as it came would be a
constant that is itself uncertain: of 5 seeds without any effect, 21 to 32 % then have p < 0.05.)

Finished cells are skipped; one that fails stops no other. On a CPU as many cells run at a time as there are cores, a
process each. results/finetuning/NAME/runs.json is the index, tuning/runs.json that of the tuning.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import from_mapping, read_yaml, run_script, setting
from iis.processes import jobs_that_fit
from iis.results import LEDGER
from iis.runtime import UserError, claim_folder, make_output_folder, nearest
from IP_training.IP_Finetuning import RESULTS
from reproduction.lib.finetuned import BEFORE, CONTROL, EQ8, FOLDER, INDEX, NAMES, TUNING, best_rates, tuned_cells
from reproduction.lib.sweeps import call_script, checked, find_sweep, run_cells

OBJECTIVES = tuple(name for name in NAMES if name != BEFORE)
MANIFEST = ("model_config", "weights", "dataset", "element_kind", "recipe", "measure")  # what a folder is made with
KEYS = (*MANIFEST, "tuning", "seeds", "objectives", "ablations")


@dataclass(kw_only=True)
class Settings:
    """What runs, and where."""

    sweep: str = setting(help="name of a YAML in reproduction/sweeps/, or a file", positional=True)
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    only: str | None = setting(None, "only cells with this word in their name, and the tuning", metavar="WORD")
    save_dir: Path | None = setting(None, "output folder (default: results/finetuning/NAME)")


def main(settings: Settings) -> None:
    """Run every cell that is not finished; the index is kept up to date."""
    file = find_sweep(settings.sweep)
    plan = read_plan(file)
    root = make_output_folder(settings.save_dir or FOLDER / file.stem)
    claim_folder(root, {**{key: plan[key] for key in MANIFEST}, "holdout": plan["tuning"].get("holdout")}, "backbones")
    jobs = lambda cells: jobs_of(plan, cells, settings.device)  # noqa: E731
    cells = cells_of(plan, tune(plan, f"{file.stem}, tuning", root / TUNING, settings.device, jobs))
    ledger_of = lambda cell: root / cell["name"] / "iis" / LEDGER  # noqa: E731
    if not plan["recipe"].get("num_pictures") and any(
            cell["objective"] == BEFORE and (settings.only or "") in cell["name"] and not ledger_of(cell).is_file()
            for cell in cells):  # once, for all seeds, before they run beside each other
        embed(plan, 0, plan["weights"], root / BEFORE, settings.device)
    # Where a longer list to tune from gives another rate, IP_Finetuning.py refuses the folder of the old one.
    run_cells(file.stem, cells, ["name", "learning_rate"],
              lambda cell: run_cell(plan, cell, root, settings.device), ledger_of, root / INDEX, settings.only,
              jobs_of=jobs)


def read_plan(file: Path) -> dict[str, Any]:
    """The YAML with defaults filled in. Raises `UserError` for unknown keys or objectives, or what is missing."""
    given = {key: value for key, value in checked(read_yaml(file), str(file), KEYS).items() if value is not None}
    plan = {"weights": None, "element_kind": "segments", "seeds": 3, "objectives": list(OBJECTIVES), "ablations": {},
            "recipe": {}, "tuning": {}, "measure": {}, **given}
    for key in ("model_config", "dataset"):
        if key not in plan:
            raise UserError(f"{file} needs a line `{key}: NAME`")
    for name, known in (("recipe", None), ("measure", None), ("ablations", ("num_concepts", "sparsity", "seeds")),
                        ("tuning", ("learning_rate", "holdout", "seeds"))):
        checked(plan[name], f"{file}: {name}", known)
    if plan["tuning"]:
        plan["tuning"] = {"holdout": 0.2, "seeds": 2, "learning_rate": None, **plan["tuning"]}
        if "learning_rate" in plan["recipe"]:
            raise UserError(f"{file}: the recipe has a learning_rate, and the tuning finds one; leave one of them out")
        if not plan["tuning"]["holdout"]:
            raise UserError(f"{file}: tuning without a holdout would choose on validation images; set one, as 0.2")
    for name, value in {"objectives": plan["objectives"], **plan["ablations"], **plan["tuning"]}.items():
        if name not in ("seeds", "holdout") and (not isinstance(value, list) or not value):
            raise UserError(f"{file}: {name} should be a list, and is {value!r}")
    for name, value in (("seeds", plan["seeds"]), ("ablations: seeds", plan["ablations"].get("seeds", 3)),
                        ("tuning: seeds", plan["tuning"].get("seeds", 2))):
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: {name} should be a whole number above 0, and is {value!r}")
    from IP_training import IP_Finetuning, IP_Prototype_training

    ablated = [{name: value} for name in ("num_concepts", "sparsity") for value in plan["ablations"].get(name, [])]
    tuned = [{"learning_rate": rate, "holdout": plan["tuning"]["holdout"]} for rate in
             plan["tuning"].get("learning_rate", [])]
    for own in ({}, *ablated, *tuned):  # what every cell would fail on, before the first one runs
        if None in own.values():
            raise UserError(f"{file}: ablations or tuning hold an empty value")
        from_mapping(IP_Finetuning.Settings, {**plan["recipe"], **own}, f"{file}: recipe")
    from_mapping(IP_Prototype_training.Settings, plan["measure"], f"{file}: measure")
    for objective in plan["objectives"]:
        if objective not in OBJECTIVES:
            raise UserError(f"{file}: the objective {objective} is not known{nearest(objective, OBJECTIVES)}")
    return plan


def tune(plan: dict[str, Any], name: str, root: Path, device: str | None,
         jobs: Callable[[int], int]) -> dict[str, float]:
    """Try the learning rates of `tuning` for every objective; the best of each, by name ({} without tuning)."""
    tuning = plan["tuning"]
    cells = [{"name": f"{objective}_lr{rate:g}_seed{seed}", "objective": objective, "learning_rate": rate, "seed": seed}
             for seed in range(tuning.get("seeds", 0)) for objective in plan["objectives"]
             for rate in tuning["learning_rate"]]
    if not cells:
        return {}

    def run(cell: dict[str, Any]) -> Path:
        own = {key: cell[key] for key in ("objective", "learning_rate", "seed")}
        return fine_tune(plan, {**own, "holdout": tuning["holdout"]}, root / cell["name"], device)

    run_cells(name, cells, ["name"], run, lambda cell: root / cell["name"] / RESULTS, root / INDEX, jobs_of=jobs)
    rates = best_rates(tuned_cells(root))
    for objective, rate in rates.items():
        edge = rate in (min(tuning["learning_rate"]), max(tuning["learning_rate"])) and len(tuning["learning_rate"]) > 1
        print(f"{NAMES[objective]}: learning rate {rate:g}" + edge * ", at the edge of those tried")
    return rates


def cells_of(plan: dict[str, Any], rates: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """What to run: per seed the backbone as it came, every objective with its own of `rates` (default: the recipe's),
    and Eq. 8 with the control's where that is another; then the ablations that are not among them, with Eq. 8's."""
    from IP_training import IP_Finetuning

    usual, ablations = vars(IP_Finetuning.Settings()) | plan["recipe"], plan["ablations"]
    rates = dict.fromkeys(OBJECTIVES, usual["learning_rate"]) | (rates or {})
    recipe, seeds = {name: usual[name] for name in ("num_concepts", "sparsity")}, range(plan["seeds"])
    cells = [(BEFORE, seed, dict.fromkeys(recipe), None) for seed in seeds]
    cells += [(objective, seed, recipe, objective) for seed in seeds for objective in plan["objectives"]]
    if rates[EQ8] != rates[CONTROL] and {EQ8, CONTROL} <= set(plan["objectives"]):
        cells += [(EQ8, seed, recipe, CONTROL) for seed in seeds]
    cells += [(EQ8, seed, {**recipe, name: value}, EQ8) for name in recipe
              for value in ablations.get(name, []) for seed in range(ablations.get("seeds", 3))]
    named = {}  # an ablation may list the usual value
    for objective, seed, own, rate_of in cells:
        middle = "" if objective == BEFORE else f"_M{own['num_concepts']}_s{own['sparsity']:g}"
        if rate_of != objective and rate_of:
            middle += f"_rate_of_{rate_of}"
        name = f"{objective}{middle}_seed{seed}"
        named[name] = {"name": name, "objective": objective, "seed": seed, **own, "rate_of": rate_of,
                       "learning_rate": rates.get(rate_of)}
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


def fine_tune(plan: dict[str, Any], own: dict[str, Any], folder: Path, device: str | None) -> Path:
    """Fine-tune by the plan's recipe with the settings of its `own`. Returns `folder`, where all of it lies."""
    from IP_training import IP_Finetuning

    return call_script(IP_Finetuning, {
        **plan["recipe"], **{name: plan[name] for name in ("model_config", "weights", "dataset", "element_kind")},
        **own, "device": device, "save_dir": folder})


def run_cell(plan: dict[str, Any], cell: dict[str, Any], root: Path, device: str | None) -> Path:
    """Fine-tune (unless it is the backbone as it came), embed, and train the predictors of stage 3. Returns the folder
    in `root` where all of it lies."""
    from IP_training import IP_Finetuning, IP_Prototype_training

    folder, weights, before = root / cell["name"], plan["weights"], cell["objective"] == BEFORE
    if not before:
        fine_tune(plan, {name: cell[name] for name in ("objective", "seed", "num_concepts", "sparsity",
                                                       "learning_rate")}, folder, device)
        weights = str(folder / IP_Finetuning.CHECKPOINT)
    common = before and not plan["recipe"].get("num_pictures")  # else each seed has its own images
    train, val, elements = embed(plan, cell["seed"], weights, root / BEFORE if common else folder, device)
    measure = from_mapping(IP_Prototype_training.Settings, plan["measure"])
    call_script(IP_Prototype_training, {
        "model_name": f"{plan['model_config']}_{cell['name']}", "dataset": plan["dataset"], "train_pt": train,
        "val_pt": val, "concept_path": elements, "device": device, **plan["measure"],
        "first_seed": measure.first_seed + cell["seed"] * measure.seeds, "save_dir": folder / "iis"})
    return folder


def embed(plan: dict[str, Any], seed: int, weights: str | None, cell: Path, device_name: str | None) -> list[Path]:
    """Stage 2 for the fine-tuning images of a seed, the validation images and the elements: the three files, in the
    folder of a cell. What is there already stays."""
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
    recipe, folder = plan["recipe"], cell / "embeddings"
    sources = [(chosen_images(dataset.images("train"), recipe.get("num_pictures", 0), seed), None),
               (dataset.images("val"), None), (folder_images(place, dataset.name, "elements"), stage1)]
    targets = [plan_target(images, backbone, HEAD_INPUT, cell.name, folder, elements=elements, place=folder)
               for images, elements in sources]
    for (images, _), target in zip(sources, targets, strict=True):
        embed_together(images, [target], 256, recipe.get("workers", 8), device)
    return [target.file for target in targets]


if __name__ == "__main__":
    run_script(main, Settings)
