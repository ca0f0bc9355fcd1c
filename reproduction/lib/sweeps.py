"""Sweeps: a YAML → cells (models × data sets × banks) → runs of the scripts of stages 1 to 3, in this process.

    settings: {seeds: 3, num_concepts: 64}      # of the training scripts; a script takes those it knows
    stage1: {format: png}                       # settings of the scripts of stage 1 and stage 2
    stage2: {batch_size: 256}
    datasets: [shapes]
    models: [shapes_small, {model_name: mine, config_yaml: shapes_small, weights: mine.pth, family: shapes}]
    banks: [Prototype, {bank: Prototype, variant: "shrink (Eq. 4)", sparsifier: shrink}]
    blocks: [{datasets: …, models: …, banks: …, settings: …}]       # more of the same, with the settings above

A model is a name of model_configs/, or a mapping of stage-2 settings; `checkpoints: "demo/weights/NAME_epoch*.pth"`
stands for one model per file, and `layers: [blocks.4, blocks.8, head_input]` for one per layer, in order of depth, all
embedded in one pass. A bank is a kind, or a mapping with the settings of its script; `variant` names what differs from
the plain cell, `elements_of` takes the elements of another data set.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from iis.cli import from_mapping, path, read_yaml
from iis.names import HEAD_INPUT, elements_file, elements_folder, layer_label, slug
from iis.processes import in_processes
from iis.runtime import ROOT, UserError, each, nearest, read_json, write_json

YAMLS = ROOT / "reproduction" / "sweeps"
SCRIPTS = {"Prototype": "IP_Prototype_training", "Cluster": "IP_Cluster_training", "End2End": "IP_End2End_training",
           "SAE": "IP_SAE_training", "NMF": "IP_Dictionary_training", "PCA": "IP_Dictionary_training",
           "SpLiCE": "IP_Dictionary_training", "Text": "IP_Text_training", "Combined": "IP_Bank_training",
           "Random": "IP_Bank_training", "Own": "IP_Bank_training"}
WITH_WORDS, WITHOUT_ELEMENTS = ("Text", "Combined"), ("Text", "SpLiCE", "Random", "Own")
OF_WORDS = ("concept_set", "clip_name", "clip_weights", "activation_dir")
STAGE1 = {"segments": "extractor.segment_extractor", "patches": "extractor.patch_extractor"}
VISUAL, TEXTUAL = "extractor.visual_element_emb_extractor", "extractor.textual_emb_extractor"
CLIP = "clip"  # as a model: CLIP's own embeddings, which a cell with words has made for another model
LISTS = ("datasets", "models", "banks")
OF_TABLES = ("family", "base_model", "net", "layer", "depth")  # of a model: for tables, not for stage 2
KEY = ("model", "stage2", "dataset", "bank", "elements_of", "flags")  # what decides a cell's ledger


# ---- scripts, called from this process ----


def call_script(script: Any, settings: Mapping[str, Any]) -> Any:
    """What `main` of a script (its module) returns for these settings; None leaves one at its default."""
    return script.main(from_mapping(script.Settings, settings, f"a call of {script.__name__}"))


def setting_names(*scripts: Any) -> set[str]:
    """The settings that any of these scripts knows."""
    return {field.name for script in scripts for field in dataclasses.fields(script.Settings)}


# ---- from the YAML to cells ----


def find_sweep(name: str) -> Path:
    """The YAML: a file, or a name in reproduction/sweeps/."""
    for file in (path(name), YAMLS / f"{name.removesuffix('.yaml')}.yaml"):
        if file.is_file():
            return file
    raise UserError(f"there is no sweep {name}{nearest(name, [file.stem for file in YAMLS.glob('*.yaml')])}")


def checked(value: Any, what: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """The mapping `value` ({} for None). Raises `UserError` where it is something else, or has a key beside `known`."""
    if not isinstance(value, dict | None):
        raise UserError(f"{what} should hold `key: value` pairs, and is {value!r}")
    for key in value or {}:
        if known is not None and key not in known:
            raise UserError(f"{what} has the unknown key {key!r}{nearest(key, known)}")
    return value or {}


def read_sweep(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The cells in the order of the file, as plain values for cells.json, and the settings of stage 1 and of stage 2.

    A cell has a name, the keys of KEY (stage2: settings of stage 2 for its model; flags: settings of the training
    script), variant, and those of OF_TABLES that its model has. Raises `UserError` for an unknown key or bank,
    and for two cells that are the same.
    """
    data = checked(read_yaml(file), str(file), (*LISTS, "settings", "blocks", "stage1", "stage2"))
    stage1, stage2, settings = (checked(data.get(key), f"{file}: {key}") for key in ("stage1", "stage2", "settings"))
    first = {key: data[key] for key in LISTS if key in data}
    cells: list[dict[str, Any]] = []
    for block in ([first] if first else []) + list(data.get("blocks") or []):
        block = checked(block, f"{file}: a block", (*LISTS, "settings"))
        own = {**settings, **checked(block.get("settings"), f"{file}: settings")}
        for key in LISTS:
            if not isinstance(block.get(key), list) or not block[key]:
                raise UserError(f"{file}: a block needs a list of {key}")
        models = [model for entry in block["models"] for model in _models(entry, file)]
        cells += [_cell(*parts, own, file) for parts in product(block["datasets"], models, block["banks"])]
    if not cells:
        raise UserError(f"{file} names no cell: it needs datasets, models and banks")
    for place, cell in enumerate(cells):
        if any(all(cell[key] == other[key] for key in KEY) for other in cells[:place]):
            raise UserError(f"{file} holds the cell ({cell['name']}) twice; leave one out")
    return json.loads(json.dumps(cells)), stage1, stage2


def _cell(dataset: str, model: dict[str, Any], bank: str | dict[str, Any], settings: dict[str, Any], file: Path
          ) -> dict[str, Any]:
    own = dict(bank) if isinstance(bank, dict) else {"bank": bank}
    kind, variant, elements_of = own.pop("bank", None), own.pop("variant", ""), own.pop("elements_of", None)
    if kind not in SCRIPTS:
        raise UserError(f"{file}: the bank {kind!r} is not known{nearest(str(kind), SCRIPTS)}")
    flags, of_tables = {**settings, **own}, {key: model[key] for key in OF_TABLES if key in model}
    size = f"M = {flags['num_concepts']}" if "num_concepts" in flags else ""
    name = layer_label(model["model_name"], model.get("layer"))
    return {"name": ", ".join(filter(None, (name, str(dataset), kind, size, variant))), "model": name,
            "stage2": {key: model[key] for key in model if key not in of_tables},
            "dataset": str(dataset), "bank": kind, "elements_of": elements_of, "flags": flags, **of_tables,
            "variant": variant}


def _models(entry: str | dict[str, Any], file: Path) -> list[dict[str, Any]]:
    if not isinstance(entry, dict):
        return [{"model_name": str(entry), "config_yaml": str(entry)}]
    model = dict(entry)
    pattern, layers = model.pop("checkpoints", None), model.get("layers")
    if layers is not None:
        if not isinstance(layers, list) or not layers or len(set(map(str, layers))) < len(layers):
            raise UserError(f"{file}: layers should be a list of different layers, and is {layers!r}")
        model = {"model_name": str(model.get("config_yaml")), **model}
    if pattern is None:
        if "model_name" not in model:
            raise UserError(f"{file}: a model given as a mapping needs a model_name")
        models = [model]
    else:
        models = [{**model, "model_name": one.stem, "weights": str(one.relative_to(ROOT))}
                  for one in _checkpoints(pattern, file)]
    # stage2 keeps all layers: it is the same for each, and so runs once for all.
    return [{**one, "net": one["model_name"], "layer": str(layer), "depth": depth} for one in models
            for depth, layer in enumerate(layers, start=1)] if layers else models


def _checkpoints(pattern: str, file: Path) -> list[Path]:
    found = sorted(ROOT.glob(pattern), key=lambda one: [int(part) if part.isdigit() else part
                                                        for part in re.split(r"(\d+)", one.name)])
    if not found:
        raise UserError(f"{file}: there is no checkpoint {ROOT / pattern}; train the backbone first")
    return found


def kind_of(cell: dict[str, Any]) -> tuple[str, str]:
    """Kind of elements, and protocol."""
    return cell["flags"].get("element_kind", "segments"), cell["flags"].get("protocol", "paper")


def of_elements(cell: dict[str, Any]) -> bool:
    """Whether a cell's bank is made of visual elements."""
    return cell["bank"] not in WITHOUT_ELEMENTS and cell["flags"].get("learned_on") != "images"


def check_settings(name: str, cells: Sequence[dict[str, Any]], stage1: dict[str, Any], stage2: dict[str, Any]) -> None:
    """Raise `UserError` for a setting that no script of its stage knows: a typo must not be dropped silently, also
    where the stage is done already."""
    of_stage1, of_stage2, training = (setting_names(*map(import_module, names)) for names in (
        STAGE1.values(), (VISUAL, TEXTUAL), (f"IP_training.{one}" for one in SCRIPTS.values())))
    given = [(stage1, of_stage1, "stage 1"), (stage2, of_stage2, "stage 2"),
             *((cell["flags"], training, "training") for cell in cells),
             *((cell["stage2"], of_stage2, "stage 2") for cell in cells)]
    for settings, names, stage in given:
        for key in settings:
            if key not in names:
                raise UserError(f"the sweep {name} sets {key!r}, which no {stage} script knows{nearest(key, names)}")
    for kind in {kind_of(cell)[0] for cell in cells} - set(STAGE1):
        raise UserError(f"the sweep {name} has the element_kind {kind!r}{nearest(str(kind), STAGE1)}")
    for cell in cells:  # values too, before hours of stages 1 and 2
        script = import_module(f"IP_training.{SCRIPTS[cell['bank']]}")
        known = setting_names(script)
        own = {"kind": cell["bank"]} if "kind" in known else {}
        from_mapping(script.Settings, {**{key: value for key, value in cell["flags"].items() if key in known}, **own},
                     f"the sweep {name}, {cell['name']}")


# ---- what a cell runs ----


class Steps:
    """Runs cells one after another and remembers which preparations are done, or failed, in this process."""

    def __init__(self, stage1: dict[str, Any], stage2: dict[str, Any], device: str | None) -> None:
        self.stage1, self.stage2, self.device = stage1, stage2, {"device": device}
        self.prepared: dict[str, str | None] = {}  # preparation → the message it failed with

    def run(self, cell: dict[str, Any]) -> Path:
        """Prepare and train one cell; the folder of its ledger. Raises `UserError` as the scripts do."""
        (kind, protocol), bank, other = kind_of(cell), cell["bank"], cell["elements_of"]
        if cell["model"] != CLIP:
            self._once(self._visual, cell, cell["dataset"], "train,val", other is None and of_elements(cell))
        settings: dict[str, Any] = {"sparsity_ratio": True} if bank == "Text" else {}
        if other:
            self._once(self._visual, cell, other, None, True)
            place = f"{cell['dataset']}_{kind}_of_{other}_M{cell['flags'].get('num_concepts', 'default')}"
            settings |= {"concept_path": elements_file(cell["model"], other, kind, protocol), "other_dataset": True,
                         "save_dir": ROOT / "IP_training" / f"IP_{bank}" / slug(cell["model"]) / slug(place)}
        if bank in WITH_WORDS:
            self._once(self._words, cell)
        script = import_module(f"IP_training.{SCRIPTS[bank]}")
        if "kind" in setting_names(script):  # a script of several banks
            settings["kind"] = bank
        return self._call(script, cell["flags"],
                          {"model_name": cell["model"], "dataset": cell["dataset"], **settings})

    def _call(self, script: Any, shared: dict[str, Any], own: dict[str, Any]) -> Any:
        """A script with those of the `shared` settings that it knows, and all of its own."""
        known = setting_names(script)
        return call_script(script, {**{key: value for key, value in shared.items() if key in known}, **self.device,
                                    **own})

    def _once(self, prepare: Callable[..., None], cell: dict[str, Any], *what: Any) -> None:
        """Run a preparation once per model in this process; one that failed fails every cell that needs it."""
        key = str((prepare.__name__, cell["stage2"], kind_of(cell), *what))
        if key not in self.prepared:
            _, failed = each(lambda one: prepare(one, *what), [cell])
            self.prepared[key] = failed[0] if failed else None
        if self.prepared[key]:
            raise UserError(self.prepared[key])

    def _visual(self, cell: dict[str, Any], dataset: str, representations: str | None, with_elements: bool) -> None:
        """Stage 2: a data set's own images, its elements, or both (stage 1 first, where there are no elements)."""
        kind, protocol = kind_of(cell)
        folder = elements_folder(dataset, kind, protocol) if with_elements else None
        if folder and not folder.is_dir():
            call_script(import_module(STAGE1[kind]), {**self.stage1, "dataset": dataset, "protocol": protocol})
        call_script(import_module(VISUAL), {**self.stage2, **self.device, **cell["stage2"], "dataset": dataset,
                                            "representations": representations, "data_path": folder})

    def _words(self, cell: dict[str, Any]) -> None:
        """Stage 2: CLIP's embeddings of words and images."""
        words = {key: value for key, value in cell["flags"].items() if key in OF_WORDS}
        if cell.get("layer") not in (None, HEAD_INPUT):
            words |= {"model_name": cell["model"], "feature_layer": cell["layer"]}
        self._call(import_module(TEXTUAL), {**self.stage2, **cell["stage2"]}, {"dataset": cell["dataset"], **words})


# ---- all cells ----


def run_cells(name: str, cells: Sequence[dict[str, Any]], same: Sequence[str], run: Callable[[dict[str, Any]], Path],
              ledger_of: Callable[[dict[str, Any]], Path], index: Path, only: str | None = None,
              dry_run: bool = False, jobs_of: Callable[[int], int] = lambda cells: 1) -> None:
    """Run every cell with the word `only` in its name that is not finished; the index (JSON) is written after each: the
    cells with "folder", "seconds" and "message".

    same: the keys by which a cell is found in an earlier index; run: makes a cell and returns its folder; ledger_of:
    where a finished cell's ledger lies; jobs_of: how many of so many unfinished cells run at a time, each in a process
    of its own, for cells that share nothing. Raises `UserError` with the messages of all that failed.
    """
    before = read_json(index) if index.exists() else []
    entries = []
    for cell in cells:
        old = next((entry for entry in before if all(entry.get(key) == cell[key] for key in same)), {})
        entries.append({**cell, **{key: old.get(key) for key in ("folder", "seconds", "message")}})
    wanted = [entry for entry in entries if not only or only in entry["name"]]
    if not wanted:
        raise UserError(f"no cell of {name} has {only!r} in its name; it has "
                        f"{'; '.join(entry['name'] for entry in entries[:4])} …")
    todo = [entry for entry in wanted if not entry["folder"] or entry["message"] or not ledger_of(entry).is_file()]
    print(f"{name}: {len(wanted)} cells, {len(wanted) - len(todo)} finished before")
    if dry_run:
        for entry in wanted:
            print(f"  {'would run' if entry in todo else 'done'}: {entry['name']}")
        return
    started = time.monotonic()
    tasks = [partial(_run_cell, run, entry, f"{number} of {len(todo)}", started)
             for number, entry in enumerate(todo, start=1)]
    # One after another they keep PyTorch's threads, and what they share.
    jobs = jobs_of(len(tasks)) if tasks else 1
    found = in_processes(tasks, jobs) if jobs > 1 else ((place, task()) for place, task in enumerate(tasks))
    for place, outcome in found:
        todo[place] |= outcome
        write_json(index, entries)
    write_json(index, entries)
    failed = [entry for entry in wanted if entry["message"]]
    print(f"\n{name}: {len(wanted) - len(failed)} of {len(wanted)} cells finished, {len(todo) - len(failed)} of them "
          f"now, in {time.monotonic() - started:.0f} s; index: {index}")
    if failed:
        raise UserError(f"{len(failed)} of {len(wanted)} cells failed; mend them and start the same command again:\n"
                        + "\n".join(f"  {entry['name']}: {entry['message']}" for entry in failed))


def _run_cell(run: Callable[[dict[str, Any]], Path], entry: dict[str, Any], number: str, started: float,
              _: Any = None) -> dict[str, Any]:
    """What the index says of a cell that has run: "message" alone where it failed; the other cells still run."""
    print(f"\n[{number}, {time.monotonic() - started:.0f} s] {entry['name']}", flush=True)
    begun = time.monotonic()
    try:
        folder = run(entry).resolve()
    except UserError as error:
        return {"message": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"message": f"{type(error).__name__}: {error}"}
    return {"folder": str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder), "message": None,
            "seconds": round(time.monotonic() - begun, 1)}
