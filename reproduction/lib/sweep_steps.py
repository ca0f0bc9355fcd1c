"""What a cell of a sweep runs, in this process: the scripts of stages 1 and 2 for what is missing, then stage 3's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from iis.names import elements_file, elements_folder, slug
from iis.runtime import ROOT, UserError, each, nearest
from reproduction.lib.scripts import call_script, setting_names
from reproduction.lib.sweep_cells import SCRIPTS

WITH_WORDS = ("Text", "Combined")
WITHOUT_ELEMENTS = ("Text", "Random", "Own")
OF_WORDS = ("concept_set", "clip_name", "clip_weights", "activation_dir")
STAGE1 = {"segments": "segment_extractor", "patches": "patch_extractor"}
VISUAL, TEXTUAL = "extractor.visual_element_emb_extractor", "extractor.textual_emb_extractor"


class Steps:
    """Runs cells one after another and remembers which preparations are done, or failed, in this process."""

    def __init__(self, stage1: dict[str, Any], stage2: dict[str, Any], device: str | None) -> None:
        self.stage1, self.stage2, self.device = stage1, stage2, {"device": device} if device else {}
        self.prepared: dict[str, str | None] = {}  # preparation → the message it failed with

    def run(self, cell: dict[str, Any]) -> Path:
        """Prepare and train one cell; the folder of its ledger. Raises `UserError` as the scripts do."""
        (kind, protocol), bank, other = kind_of(cell), cell["bank"], cell["elements_of"]
        self._once(self._visual, cell, cell["dataset"], "train,val", other is None and bank not in WITHOUT_ELEMENTS)
        settings: dict[str, Any] = {"sparsity_ratio": True} if bank == "Text" else {}
        if other:
            self._once(self._visual, cell, other, None, True)
            place = f"{cell['dataset']}_{kind}_of_{other}_M{cell['flags'].get('num_concepts', 'default')}"
            settings |= {"concept_path": elements_file(cell["model"], other, kind, protocol), "other_dataset": True,
                         "save_dir": ROOT / "IP_training" / f"IP_{bank}" / slug(cell["model"]) / slug(place)}
        if bank in WITH_WORDS:
            self._once(self._words, cell)
        script = import_module(f"IP_training.{SCRIPTS[bank]}")
        if SCRIPTS[bank] == "IP_Bank_training":
            settings["kind"] = bank
        return call_script(script, {"model_name": cell["model"], "dataset": cell["dataset"], **self.device,
                                    **_known(cell["flags"], script), **settings})

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
            call_script(import_module(f"extractor.{STAGE1[kind]}"),
                        {**self.stage1, "dataset": dataset, "protocol": protocol})
        call_script(import_module(VISUAL), {**self.stage2, **self.device, **cell["stage2"], "dataset": dataset,
                                            "representations": representations, "data_path": folder})

    def _words(self, cell: dict[str, Any]) -> None:
        """Stage 2: CLIP's embeddings of words and images."""
        script = import_module(TEXTUAL)
        words = {key: value for key, value in cell["flags"].items() if key in OF_WORDS}
        call_script(script, {**_known({**self.stage2, **cell["stage2"]}, script), **self.device,
                             "dataset": cell["dataset"], **words})


def kind_of(cell: dict[str, Any]) -> tuple[str, str]:
    """Kind of elements, and protocol."""
    return cell["flags"].get("element_kind", "segments"), cell["flags"].get("protocol", "paper")


def check_settings(name: str, cells: Sequence[dict[str, Any]], stage1: dict[str, Any], stage2: dict[str, Any]) -> None:
    """Raise `UserError` for a setting that no script of its stage knows: a typo must not be dropped silently, also
    where the stage is done already."""
    def known(*names: str) -> set[str]:
        return set.union(*(setting_names(import_module(name)) for name in names))

    of_stage1, of_stage2 = known(*(f"extractor.{one}" for one in STAGE1.values())), known(VISUAL, TEXTUAL)
    training = known(*(f"IP_training.{one}" for one in set(SCRIPTS.values())))
    given = [(stage1, of_stage1, "stage 1"), (stage2, of_stage2, "stage 2")]
    for cell in cells:
        given += [(cell["flags"], training, "training"), (cell["stage2"], of_stage2, "stage 2")]
        kind, _ = kind_of(cell)
        if kind not in STAGE1:
            raise UserError(f"the sweep {name} has the element_kind {kind!r}{nearest(str(kind), STAGE1)}")
    for settings, names, stage in given:
        for key in settings:
            if key not in names:
                raise UserError(f"the sweep {name} sets {key!r}, which no {stage} script knows{nearest(key, names)}")


def _known(settings: dict[str, Any], script: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in setting_names(script)}
