"""Train interpretation predictors on an SAE bank: the dictionary of a sparse autoencoder that is learned here.

    cd IP_training
    python IP_SAE_training.py --model_name resnet50 --num_concepts 200
    python IP_SAE_training.py --model_name resnet50 --num_concepts 8000 --learned_on images --route encoder

reads stage 2's embeddings as IP_Prototype_training.py does. A dictionary made elsewhere goes to IP_Bank_training.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import positive, run_script, setting
from IP_training.config import SAE_STEPS, ElementSettings


@dataclass(kw_only=True)
class Settings(ElementSettings):
    """Sparse autoencoder"""

    sae_rule: Literal["topk", "batchtopk"] = setting(
        "topk", "codes that stay: the k largest of each row, or k a row on average over a batch")
    sae_k: int | None = setting(None, "k (default: an eighth of M, at least 1)", type=positive)
    sae_steps: int = setting(SAE_STEPS, "training steps", type=positive)
    sae_control: Literal["none", "frozen_decoder", "frozen_encoder"] = setting(
        "none", "control: this part stays random, the other is trained")
    learned_on: Literal["elements", "images"] = setting("elements", "visual elements, or training images")
    route: Literal["decoder", "encoder"] = setting("decoder", "activations: projections on the decoder's rows, or the "
                                                   "sparse codes of the encoder")


def main(settings: Settings) -> Path:
    """Fit the autoencoder of each seed and train the grid. Returns the folder of the ledger."""
    from iis.runtime import choose_device
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.run import train_bank
    from IP_training.sparse_autoencoder import SAERecipe, identity_of_sae, sae

    images = settings.learned_on == "images"
    inputs, num_concepts = load_inputs(settings, with_elements=not images), concepts_wanted(settings)
    recipe = SAERecipe(rule=settings.sae_rule, k=settings.sae_k, control=settings.sae_control, steps=settings.sae_steps)
    make_bank = sae(inputs.train if images else inputs.elements, num_concepts, recipe, settings.route, images,
                    settings.element_choice, choose_device(settings.device, silent=True))
    identity = identity_of_sae(recipe, num_concepts, settings.route, settings.learned_on)
    return train_bank(settings, "SAE", inputs, make_bank, num_concepts,
                      {**identity, "element_choice": None if images else settings.element_choice})


if __name__ == "__main__":
    run_script(main, Settings)
