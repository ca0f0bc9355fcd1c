"""What a cell of a sweep runs, in this process: the scripts of stages 1 and 2 for what is missing, then its own script."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from iis.names import elements_file, elements_folder, slug
from iis.runtime import ROOT, UserError, nearest
from reproduction.lib.scripts import call_script
from reproduction.lib.sweep_cells import DOORS, Sweep, SweepCell

WITH_WORDS = ("Text", "Combined")
WITHOUT_ELEMENTS = ("Text", "Random", "Own")
STAGE1 = {"segments": "segment_extractor", "patches": "patch_extractor"}
STAGE2 = ("visual_element_emb_extractor", "textual_emb_extractor")


class Steps:
    """Runs cells one after another and remembers which preparations are done, or failed, in this process."""

    def __init__(self, sweep: Sweep, device: str | None) -> None:
        self.sweep, self.device = sweep, {"device": device} if device else {}
        self.prepared: dict[str, str | None] = {}  # preparation → the message it failed with
        check_settings(sweep)

    def run(self, cell: SweepCell) -> Path:
        """Prepare and train one cell; the folder of its ledger. Raises `UserError` as the scripts do."""
        kind, protocol = cell.flags.get("element_kind", "segments"), cell.flags.get("protocol", "paper")
        own_elements = cell.elements_of is None and cell.bank not in WITHOUT_ELEMENTS
        folders = [elements_folder(cell.dataset, kind, protocol)] if own_elements else []
        self._once(self._representations, cell, cell.dataset, folders)
        extra: dict[str, Any] = {}
        if cell.elements_of:
            self._once(self._elements, cell, cell.elements_of, kind, protocol)
            source = elements_file(cell.model_name, cell.elements_of, kind, protocol)
            place = f"{cell.dataset}_{kind}_of_{cell.elements_of}_M{cell.flags.get('num_concepts', 'default')}"
            extra = {"concept_path": source, "other_dataset": True,
                     "save_dir": ROOT / "IP_training" / f"IP_{cell.bank}" / slug(cell.model_name) / slug(place)}
        if cell.bank in WITH_WORDS:
            self._once(self._words, cell, cell.dataset)
        return self._train(cell, extra)

    def _train(self, cell: SweepCell, extra: dict[str, Any]) -> Path:
        script = _script("IP_training", DOORS[cell.bank])
        if cell.bank == "Text":
            extra = {**extra, "sparsity_ratio": True}
        if DOORS[cell.bank] == "IP_Bank_training":
            extra = {**extra, "kind": cell.bank}
        known = script.parser().flags()
        flags = {key: value for key, value in cell.flags.items() if key in known}
        whose = {"model_name": cell.model_name, "dataset": cell.dataset}
        return call_script(script, {**whose, **self.device, **flags, **extra})

    def _once(self, prepare: Any, cell: SweepCell, *what: Any) -> None:
        """Run a preparation once per model in this process; one that failed fails every cell that needs it."""
        key = str((prepare.__name__, cell.model, *what))
        if key not in self.prepared:
            try:
                prepare(cell, *what)
                self.prepared[key] = None
            except UserError as error:
                self.prepared[key] = str(error)
        if self.prepared[key]:
            raise UserError(self.prepared[key])

    def _representations(self, cell: SweepCell, dataset: str, folders: list[Path]) -> None:
        """Stage 2: the data set's own images, and its elements (stage 1 first, where there are none)."""
        for folder in folders:
            self._stage1(folder, dataset, cell)
        flags = {**self.sweep.stage2, **self.device, **cell.model, "dataset": dataset, "representations": "train,val"}
        if folders:
            flags["data_path"] = folders[0]
        call_script(_script("extractor", "visual_element_emb_extractor"), flags)

    def _elements(self, cell: SweepCell, dataset: str, kind: str, protocol: str) -> None:
        """Stage 2: another data set's elements."""
        folder = elements_folder(dataset, kind, protocol)
        self._stage1(folder, dataset, cell)
        call_script(_script("extractor", "visual_element_emb_extractor"),
                  {**self.sweep.stage2, **self.device, **cell.model, "dataset": dataset, "data_path": folder})

    def _stage1(self, folder: Path, dataset: str, cell: SweepCell) -> None:
        if folder.is_dir():
            return
        kind, protocol = cell.flags.get("element_kind", "segments"), cell.flags.get("protocol", "paper")
        call_script(_script("extractor", STAGE1[kind]),
                  {**self.sweep.stage1, "dataset": dataset, "protocol": protocol})

    def _words(self, cell: SweepCell, dataset: str) -> None:
        """Stage 2: CLIP's embeddings of words and images."""
        script = _script("extractor", "textual_emb_extractor")
        known = script.parser().flags()
        words = {key: cell.flags[key] for key in ("concept_set", "clip_name", "clip_weights", "activation_dir")
                 if key in cell.flags}
        flags = {key: value for key, value in {**self.sweep.stage2, **cell.model}.items() if key in known}
        call_script(script, {**flags, **self.device, "dataset": dataset, **words})


def check_settings(sweep: Sweep) -> None:
    """Raise `UserError` for a setting that no script of its stage knows: a typo must not be dropped silently, also where
    the stage is done already."""
    training, stage2 = _known("IP_training", *sorted(set(DOORS.values()))), _known("extractor", *STAGE2)
    stages = [(sweep.stage1, _known("extractor", *STAGE1.values()), "stage 1"), (sweep.stage2, stage2, "stage 2")]
    for cell in sweep.cells:
        stages += [(cell.flags, training, "training"), (cell.model, stage2, "stage 2")]
        kind = cell.flags.get("element_kind", "segments")
        if kind not in STAGE1:
            raise UserError(f"the sweep {sweep.name} has the element_kind {kind!r}{nearest(str(kind), STAGE1)}")
    for flags, known, stage in stages:
        for key in flags:
            if key not in known:
                raise UserError(f"the sweep {sweep.name} sets {key!r}, which no {stage} script knows"
                                f"{nearest(key, known)}")


def _known(folder: str, *names: str) -> set[str]:
    return {flag for name in names for flag in _script(folder, name).parser().flags()}


def _script(folder: str, name: str) -> Any:
    return importlib.import_module(f"{folder}.{name}")
