"""Train interpretation predictors on a bank from dictionary learning: NMF as in CRAFT, or PCA.

    cd IP_training
    python IP_Dictionary_training.py --kind NMF --model_name resnet50 --num_concepts 200
    python IP_Dictionary_training.py --kind PCA --model_name resnet50 --num_concepts 200

reads stage 2's embeddings as IP_Prototype_training.py does. NMF needs features of at least 0, as after a ReLU.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script, setting
from IP_training.config import ElementSettings


@dataclass(kw_only=True)
class Settings(ElementSettings):
    """Bank from dictionary learning"""

    kind: Literal["NMF", "PCA"] = setting("NMF", "which bank")


def main(settings: Settings) -> Path:
    """Build the bank of each seed and train the grid. Returns the folder of the ledger."""
    from IP_training import dictionaries
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.run import train_bank

    inputs, num_concepts = load_inputs(settings), concepts_wanted(settings)
    make = {"NMF": dictionaries.nmf, "PCA": dictionaries.pca}[settings.kind]
    return train_bank(settings, settings.kind, inputs, make(inputs.elements, num_concepts, settings.element_choice),
                      num_concepts, {"element_choice": settings.element_choice})


if __name__ == "__main__":
    run_script(main, Settings)
