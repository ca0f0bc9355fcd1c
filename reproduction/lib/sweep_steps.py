"""What a cell of a sweep runs, in this process: the scripts of stages 1 and 2 for what is missing, then stage 3's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from iis.names import elements_file, elements_folder, slug
from iis.runtime import ROOT, UserError, nearest
from reproduction.lib.scripts import call_script, setting_names
from reproduction.lib.sweep_cells import SCRIPTS, Sweep, SweepCell

WITH_WORDS = ("Text", "Combined")
WITHOUT_ELEMENTS = ("Text", "Random", "Own")
STAGE1 = {"segments": "segment_extractor", "patches": "patch_extractor"}
VISUAL, TEXTUAL = "extractor.visual_element_emb_extractor", "extractor.textual_emb_extractor"


class Steps:
    """Runs cells one after another and remembers which preparations are done, or failed, in this process."""

    def __init__(self, sweep: Sweep, device: str | None) -> None:
        self.sweep, self.device = sweep, {"device": device} if device else {}
        self.prepared: dict[str, str | None] = {}  # preparation → the message it failed with
        check_settings(sweep)

    def run(self, cell: SweepCell) -> Path:
        """Prepare and train one cell; the folder of its ledger. Raises `UserError` as the scripts do."""
        with_elements = cell.elements_of is None and cell.bank not in WITHOUT_ELEMENTS
        self._once(self._visual, cell, cell.dataset, "train,val", with_elements)
        settings: dict[str, Any] = {}
        if cell.elements_of:
            self._once(self._visual, cell, cell.elements_of, None, True)
            kind, protocol = kind_of(cell)
            place = f"{cell.dataset}_{kind}_of_{cell.elements_of}_M{cell.flags.get('num_concepts', 'default')}"
            settings = {"concept_path": elements_file(cell.model_name, cell.elements_of, kind, protocol),
                        "other_dataset": True,
                        "save_dir": ROOT / "IP_training" / f"IP_{cell.bank}" / slug(cell.model_name) / slug(place)}
        if cell.bank in WITH_WORDS:
            self._once(self._words, cell)
        script = import_module(f"IP_training.{SCRIPTS[cell.bank]}")
        if cell.bank == "Text":
            settings["sparsity_ratio"] = True
        if SCRIPTS[cell.bank] == "IP_Bank_training":
            settings["kind"] = cell.bank
        return call_script(script, {"model_name": cell.model_name, "dataset": cell.dataset, **self.device,
                                    **_known(cell.flags, script), **settings})

    def _once(self, prepare: Callable[..., None], cell: SweepCell, *what: Any) -> None:
        """Run a preparation once per model in this process; one that failed fails every cell that needs it."""
        key = str((prepare.__name__, cell.stage2, kind_of(cell), *what))
        if key not in self.prepared:
            try:
                prepare(cell, *what)
                self.prepared[key] = None
            except UserError as error:
                self.prepared[key] = str(error)
        if self.prepared[key]:
            raise UserError(self.prepared[key])

    def _visual(self, cell: SweepCell, dataset: str, representations: str | None, with_elements: bool) -> None:
        """Stage 2: a data set's own images, its elements, or both (stage 1 first, where there are no elements)."""
        folder = elements_folder(dataset, *kind_of(cell)) if with_elements else None
        if folder and not folder.is_dir():
            kind, protocol = kind_of(cell)
            call_script(import_module(f"extractor.{STAGE1[kind]}"),
                        {**self.sweep.stage1, "dataset": dataset, "protocol": protocol})
        call_script(import_module(VISUAL), {**self.sweep.stage2, **self.device, **cell.stage2, "dataset": dataset,
                                            "representations": representations, "data_path": folder})

    def _words(self, cell: SweepCell) -> None:
        """Stage 2: CLIP's embeddings of words and images."""
        script = import_module(TEXTUAL)
        words = {key: cell.flags[key] for key in ("concept_set", "clip_name", "clip_weights", "activation_dir")
                 if key in cell.flags}
        call_script(script, {**_known({**self.sweep.stage2, **cell.stage2}, script), **self.device,
                             "dataset": cell.dataset, **words})


def kind_of(cell: SweepCell) -> tuple[str, str]:
    """Kind of elements, and protocol."""
    return cell.flags.get("element_kind", "segments"), cell.flags.get("protocol", "paper")


def check_settings(sweep: Sweep) -> None:
    """Raise `UserError` for a setting that no script of its stage knows: a typo must not be dropped silently, also
    where the stage is done already."""
    def known(*names: str) -> set[str]:
        return set.union(*(setting_names(import_module(name)) for name in names))

    stage1, stage2 = known(*(f"extractor.{name}" for name in STAGE1.values())), known(VISUAL, TEXTUAL)
    training = known(*(f"IP_training.{name}" for name in set(SCRIPTS.values())))
    given = [(sweep.stage1, stage1, "stage 1"), (sweep.stage2, stage2, "stage 2")]
    for cell in sweep.cells:
        given += [(cell.flags, training, "training"), (cell.stage2, stage2, "stage 2")]
        kind, _ = kind_of(cell)
        if kind not in STAGE1:
            raise UserError(f"the sweep {sweep.name} has the element_kind {kind!r}{nearest(str(kind), STAGE1)}")
    for settings, names, stage in given:
        for key in settings:
            if key not in names:
                raise UserError(f"the sweep {sweep.name} sets {key!r}, which no {stage} script knows"
                                f"{nearest(key, names)}")


def _known(settings: dict[str, Any], script: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in setting_names(script)}
