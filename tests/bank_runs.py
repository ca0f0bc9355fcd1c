"""What the tests of stage 3's scripts share: runs in this process, a CLIP whose words are known, plain predictions.

A script is called as `main(parse(Settings, flags))`, because starting a process costs seconds.
"""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import clusters, prototype_flags
from safetensors.torch import load_file

from iis.cli import parse
from iis.embedding_file import Embeddings, save_embeddings
from iis.names import clip_images_file, clip_label, clip_words_file
from iis.results import VOLATILE, read_ledger
from iis.runtime import UserError

CLASS_WORDS = [f"class word {k}" for k in range(4)]
WORDS = [*CLASS_WORDS, "noise word", "unseen word"]  # the last two are what either cut-off is for
DROPPED = {"noise word": "interpretability_cutoff", "unseen word": "clip_cutoff"}
GRID = 8 * 3 + 3  # heads of a seed


def flags_of(toy: Path, out: str | None, *switches: str, **changes: object) -> list[str]:
    """Flags of a short run of any script on the `toy` files, into toy / out (None: no --save_dir)."""
    return [str(flag) for flag in (*prototype_flags(toy, toy / out if out else None, **changes), *switches)]


def run(script: ModuleType, toy: Path, out: str | None = "out", *switches: str, **changes: object) -> Path:
    """Run a script; the folder of its results."""
    return script.main(parse(script.Settings, flags_of(toy, out, *switches, **changes)))


def refusal(script: ModuleType, toy: Path, *switches: str, **changes: object) -> str:
    """The sentence a script refuses these flags with; it leaves no ledger, and the folder is free."""
    with pytest.raises(UserError) as error:
        run(script, toy, "refused", *switches, **changes)
    assert not {file.name for file in toy.glob("refused/*")} - {"settings.yaml"}
    assert "\n" not in str(error.value)
    return str(error.value)


def ledger(folder: Path) -> list[dict]:
    """The rows of a run."""
    return read_ledger(folder / "results.jsonl")


def stable(folder: Path, *without: str) -> list[dict]:
    """The rows without what two runs of one seed may differ in, and without some other keys."""
    return [{key: value for key, value in row.items() if key not in (*VOLATILE, *without)} for row in ledger(folder)]


def predictors(folder: Path, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and description of a seed's selected predictors."""
    file = folder / "predictors" / f"seed_{seed}.safetensors"
    return load_file(file), json.loads(file.with_suffix(".json").read_text())


def plain_top1(folder: Path, ratio: str, layer_columns: slice = slice(None)) -> float:
    """Validation accuracy of a stored predictor, from its file alone: LayerNorm over `layer_columns`, the moments of
    the file elsewhere (0 and 1 in LayerNorm's columns)."""
    tensors, described = predictors(folder)
    own = f"{ratio}/" if f"{ratio}/bank" in tensors else ""
    val, kept = clusters(200, "val"), described["selected"][ratio]["kept"]
    a = val.features_ND @ tensors[f"{own}bank"].T
    z = (a - tensors[f"{own}mean"]) / tensors[f"{own}std"]
    if a[:, layer_columns].shape[1]:
        part = a[:, layer_columns]
        z[:, layer_columns] = (part - part.mean(1, keepdim=True)) / (part.var(1, keepdim=True, correction=0)
                                                                      + 1e-5).sqrt()
    z = z * tensors[f"{ratio}/scale"] + tensors[f"{ratio}/shift"]
    z = z * torch.zeros_like(z).scatter_(1, z.abs().topk(kept).indices, 1.0)
    right = (z @ tensors[f"{ratio}/weight"].T + tensors[f"{ratio}/bias"]).argmax(1) == val.labels_N
    return float(right.double().mean())


def assert_plain(folder: Path, layer_columns: slice = slice(None)) -> None:
    """Every stored predictor gives the ledger's accuracy; one image in 200 may be a tie that rounding decides."""
    selected = predictors(folder)[1]["selected"]
    assert len(selected) == 8
    for ratio in selected:
        assert plain_top1(folder, ratio, layer_columns) == pytest.approx(selected[ratio]["top1"], abs=0.0051), ratio


def save_clip(folder: Path, words: list[str] = WORDS, shuffled: bool = False) -> None:
    """A CLIP's embeddings (width 6) of the toy images and of `words.txt`, under the published names.

    An image is e_class + e_4 · noise, small noise elsewhere; class word k is e_k, the noise word e_4, and the
    unseen word is opposite to all images. So which cut-off must drop what is known.
    """
    label, provenance = clip_label("ViT-B/16"), {"model": "toy CLIP", "weights_hash": "c11b"}
    texts = torch.cat([torch.eye(6)[:5], torch.tensor([[-1.0] * 4 + [0.0, 0.0]])])
    texts_Md = torch.stack([texts[WORDS.index(word)] for word in words])
    save_embeddings(clip_words_file(folder, Path("words.txt"), label),
                    Embeddings(texts_Md, torch.zeros(len(words), dtype=torch.int64), ["concept"], words,
                               {**provenance, "concept_set": "words"}))
    for split, count in (("train", 300), ("val", 200)):
        images = clusters(count, split)
        generator = torch.Generator().manual_seed(count)
        images.features_ND = 0.02 * torch.randn(count, 6, generator=generator)
        images.features_ND[torch.arange(count), images.labels_N] += 1.0
        images.features_ND[:, 4] += torch.randn(count, generator=generator)
        images.provenance = {**provenance, "split": split}
        if shuffled:
            images.image_paths.reverse()
        save_embeddings(clip_images_file(folder, "toy", split, label), images)


def text_flags(toy: Path, **changes: object) -> dict[str, object]:
    """Flags of the Text bank on `save_clip(toy)`."""
    return {"concept_set": toy / "words.txt", "activation_dir": toy, "num_concepts": None, **changes}
