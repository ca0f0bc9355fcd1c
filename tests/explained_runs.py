"""What the tests of explanations share: a predictor in memory, and a small run on a data set of painted squares."""

from pathlib import Path

import torch
from bank_runs import run as run_bank
from conftest import clusters
from PIL import Image

from iis.datasets import Dataset
from iis.embedding_file import save_embeddings
from IP_training import IP_Prototype_training
from IP_training.normalise import Normaliser
from reproduction.lib.explanation import Predictor


def predictor_of(ratio: float = 0.5, concepts: int = 8, classes: int = 3, width: int = 5) -> Predictor:
    """A predictor with random weights: k = M − ⌊M·s⌋ of M concepts stay."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Predictor(ratio, "mask", draw(concepts, width), Normaliser((("layer", concepts),), torch.zeros(concepts),
                                                                      torch.ones(concepts)),
                     draw(concepts), draw(concepts), draw(classes, concepts), draw(classes),
                     [[f"word {m}"] for m in range(concepts)], [f"class {c}" for c in range(classes)],
                     {"bank": "Text", "model": "toy", "dataset": "toy"}, 0.5)


def features(count: int, width: int = 5) -> torch.Tensor:
    """Representations (count, width)."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


def explained_run(folder: Path, ratios: str = "0.5,0.7,0.9") -> tuple[Path, Dataset]:
    """A trained Prototype run on the `toy` files in `folder`, its images painted, and its data set."""
    for place, split in (("images/val", "val"), ("elements", "elements")):
        for name in clusters(200 if split == "val" else 80, split).image_paths:
            file = folder / place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (len(name) * 9 % 255, 40, 90)).save(file)
    elements = clusters(80, "elements")
    elements.record = {"root": str(folder / "elements")}
    save_embeddings(folder / "elements.pkl", elements)
    made = run_bank(IP_Prototype_training, folder, "run", seeds=2, ratios=ratios, learning_rates="0.1")
    return made, Dataset("toy", folder / "images")
