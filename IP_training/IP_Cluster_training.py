"""Train interpretation predictors on a Cluster bank: k-means centres of the visual elements (paper, section 3).

    cd IP_training
    python IP_Cluster_training.py --model_name resnet50 --num_concepts 200 --save_dir ./IP_Cluster/resnet50

reads stage 2's embeddings as IP_Prototype_training.py does.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script
from IP_training.config import ElementSettings


@dataclass(kw_only=True)
class Settings(ElementSettings):
    """Cluster bank"""


def main(settings: Settings) -> Path:
    """Fit the centres of each seed and train the grid. Returns the folder of the ledger."""
    from IP_training import banks
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.run import train_bank

    inputs, num_concepts = load_inputs(settings), concepts_wanted(settings)
    make_bank = banks.clusters(inputs.elements, num_concepts, settings.element_choice)
    return train_bank(settings, "Cluster", inputs, make_bank, num_concepts, {"element_choice": settings.element_choice})


if __name__ == "__main__":
    run_script(main, Settings)
