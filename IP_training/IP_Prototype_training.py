"""Train interpretation predictors on a bank of prototypes: M of the visual elements (paper, section 3).

    cd IP_training
    python IP_Prototype_training.py --model_name resnet50 --in_channels 2048 \\
        --concept_path ../extractor/embs/resnet50/visual_element_emb.pkl --num_concepts 200 --num_classes 1000 \\
        --n_epoch 30 --train_pt ../extractor/embs/resnet50/imagenet_train_resnet50_layer4.pt \\
        --val_pt ../extractor/embs/resnet50/imagenet_val_resnet50_layer4.pt --save_dir ./IP_Prototype/resnet50

writes results.jsonl (the ledger), predictors/, settings.yaml and manifest.json into --save_dir.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script, setting
from IP_training.config import TrainingSettings


@dataclass(kw_only=True)
class Settings(TrainingSettings):
    """Prototype bank"""

    prototypes: Literal["balanced", "first"] | None = setting(
        None, "balanced over classes and seeded, or the first M rows as the release (default: protocol)")


def main(settings: Settings) -> Path:
    """Build the bank of each seed and train the grid. Returns the folder of the ledger."""
    from IP_training import banks
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.run import train_bank

    inputs, num_concepts = load_inputs(settings), concepts_wanted(settings)
    make_bank = banks.prototypes(inputs.elements, num_concepts, settings.prototypes)
    return train_bank(settings, "Prototype", inputs, make_bank, num_concepts, {"prototypes": settings.prototypes})


if __name__ == "__main__":
    run_script(main, Settings)
