"""Train interpretation predictors on a bank from dictionary learning: NMF as in CRAFT, PCA, or SpLiCE's words.

    cd IP_training
    python IP_Dictionary_training.py --kind NMF --model_name resnet50 --num_concepts 200
    python IP_Dictionary_training.py --kind PCA --model_name resnet50 --num_concepts 200
    python IP_Dictionary_training.py --kind SpLiCE --model_name clip --feature_layer ViT-B16

NMF and PCA read stage 2's embeddings as IP_Prototype_training.py does; NMF needs features of at least 0, as after a
ReLU. SpLiCE is for CLIP itself: it reads the files of extractor/textual_emb_extractor.py in extractor/embs/clip, or in
--activation_dir. Without --num_concepts it takes all words.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script, setting
from iis.runtime import UserError
from IP_training.config import PENALTY, ElementSettings
from IP_training.text_bank import TextSettings


@dataclass(kw_only=True)
class Settings(TextSettings, ElementSettings):
    """Bank from dictionary learning"""

    kind: Literal["NMF", "PCA", "SpLiCE"] = setting("NMF", "which bank")
    penalty: float = setting(PENALTY, "SpLiCE: what an image's codes cost; a larger one leaves fewer that are not 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty != PENALTY and self.kind != "SpLiCE":
            raise UserError(f"--penalty {self.penalty:g} belongs to SpLiCE: add --kind SpLiCE, or leave it out")


def main(settings: Settings) -> Path:
    """Build the bank of each seed and train the grid. Returns the folder of the ledger."""
    from iis.runtime import choose_device
    from IP_training import dictionaries
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.run import train_bank
    from IP_training.text_bank import identity_of_words, load_text_inputs

    kind, choice = settings.kind, settings.element_choice
    inputs = load_inputs(settings, with_elements=kind != "SpLiCE")
    if kind != "SpLiCE":
        num_concepts, make = concepts_wanted(settings), {"NMF": dictionaries.nmf, "PCA": dictionaries.pca}[kind]
        return train_bank(settings, kind, inputs, make(inputs.elements, num_concepts, choice), num_concepts,
                          {"element_choice": choice})
    text = load_text_inputs(settings, inputs)
    for split in ("train", "val"):
        if getattr(text, split).content_hash != getattr(inputs, split).content_hash:
            raise UserError(f"the {split} representations are not CLIP's own image embeddings, which SpLiCE is for: "
                            "use --model_name clip, with --feature_layer where there are several CLIPs")
    make_bank = dictionaries.splice(text.words.image_paths, text.words.features_ND, inputs.train.features_ND,
                                    settings.num_concepts, settings.penalty,
                                    choose_device(settings.device, silent=True))
    return train_bank(settings, kind, inputs, make_bank, settings.num_concepts,
                      {**identity_of_words(text), "penalty": settings.penalty}, most_concepts=len(text.words))


if __name__ == "__main__":
    run_script(main, Settings)
