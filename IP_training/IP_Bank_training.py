"""Train interpretation predictors on a Random bank (control), a Combined one, or a matrix of your own.

    cd IP_training
    python IP_Bank_training.py --kind Random --model_name resnet50
    python IP_Bank_training.py --kind Combined --parts Prototype,Text --model_name resnet50
    python IP_Bank_training.py --bank my_concepts.npy --bank_names my_concepts.txt --model_name resnet50

A Combined bank shares --num_concepts evenly between its parts; one of your own (part Own, with --bank) goes in whole.
--bank takes any M x D matrix (.npy, .pt, .safetensors), or the file of a sparse autoencoder, whose codes `--route
encoder` takes for activations.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import positive, run_script, setting
from iis.runtime import UserError, nearest
from IP_training import banks
from IP_training.config import ElementSettings
from IP_training.dictionary_file import from_file, identity_of_own
from IP_training.inputs import Inputs, concepts_wanted, load_inputs
from IP_training.run import train_bank
from IP_training.text_bank import TextSettings, identity_of_text, load_text_inputs, words

PARTS = ("Prototype", "Cluster", "Text", "Random", "Own")


@dataclass(kw_only=True)
class Settings(TextSettings, ElementSettings):
    """Random, Combined or own bank"""

    kind: Literal["Random", "Combined", "Own"] = setting("Random", "which bank")
    parts: tuple[str, ...] | None = setting(None, f"of a Combined bank, from {', '.join(PARTS)} (default "
                                            "Prototype,Text)")
    bank: Path | None = setting(None, "an M x D matrix of your own, or an SAE's file (--kind Own, or the part Own of a "
                                "Combined bank)", metavar="FILE")
    bank_names: Path | None = setting(None, "its concepts' names: one a line, or JSON (a list, or number: name)",
                                      metavar="FILE")
    route: Literal["decoder", "encoder"] = setting("decoder", "activations: projections on the bank, or the sparse "
                                                   "codes of the encoder in --bank")
    sae_k: int | None = setting(None, "how many codes of that encoder stay (default: as the file says)", type=positive)
    prototypes: Literal["balanced", "first"] | None = setting(None, "of a Prototype part (default: protocol)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bank_names and not self.bank:
            raise UserError(f"--bank_names {self.bank_names} names the concepts of --bank FILE: give that too")
        if self.bank and self.kind == "Random":
            self.kind = "Own"
        if self.kind == "Own" and self.bank is None:
            raise UserError("--kind Own needs --bank FILE")
        if self.route == "encoder" and self.kind != "Own":
            raise UserError("--route encoder takes the encoder of a bank of your own: add --bank FILE, without --kind")
        if self.sae_k and self.route != "encoder":
            raise UserError(f"--sae_k {self.sae_k} belongs to an encoder: add --route encoder")
        if self.kind != "Combined":
            if self.parts is not None:
                raise UserError(f"--parts {','.join(self.parts)} belongs to a Combined bank: add --kind Combined")
            return
        self.parts = self.parts or ("Prototype", "Text")
        text = ",".join(self.parts)
        for part in self.parts:
            if part not in PARTS:
                raise UserError(f"--parts {part} is not known{nearest(part, PARTS)}")
            if self.parts.count(part) > 1:
                raise UserError(f"--parts {text} names {part} twice; every part gets its share once")
        if len(self.parts) < 2:
            raise UserError(f"--parts {text}: a Combined bank needs at least two")
        if bool(self.bank) != ("Own" in self.parts):
            raise UserError("a bank of your own in a Combined one needs both --bank FILE and Own among the --parts "
                            f"(--parts {text})")


def main(settings: Settings) -> Path:
    """Build the bank of each seed and train the grid. Returns the folder of the ledger."""
    parts = settings.parts if settings.kind == "Combined" else ()
    inputs = load_inputs(settings, with_elements=bool({"Prototype", "Cluster"} & set(parts)))
    own = settings.bank and from_file(settings.bank, inputs.train.width, settings.bank_names, settings.route,
                                      settings.sae_k)
    identity = identity_of_own(settings.bank, own) if own else {}
    if settings.kind == "Own":
        if settings.num_concepts not in (None, len(own)):
            raise UserError(f"--num_concepts {settings.num_concepts}, but {settings.bank} has {len(own)}; leave it out")
        return train_bank(settings, "Own", inputs, lambda seed: own, len(own), identity)
    num_concepts = concepts_wanted(settings)
    if settings.kind == "Random":
        return train_bank(settings, "Random", inputs, banks.random(num_concepts, inputs.train.width), num_concepts, {})
    make_bank, more = combined(settings, inputs, num_concepts, own)
    return train_bank(settings, "Combined", inputs, make_bank, num_concepts,
                      {"parts": list(parts), "prototypes": settings.prototypes,
                       "element_choice": settings.element_choice, **identity, **more})


def combined(settings: Settings, inputs: Inputs, num_concepts: int,
             own: banks.Bank | None) -> tuple[banks.MakeBank, dict[str, Any]]:
    """The Combined bank, and what identifies its Text part. Own goes in whole; the others share what is left of M."""
    made = [part for part in settings.parts if part != "Own"]
    left = num_concepts - (len(own) if own else 0)
    if left < len(made):
        raise UserError(f"--num_concepts {num_concepts} is too few for the parts {', '.join(settings.parts)}"
                        + (f": the bank of your own has {len(own)}" if own else ""))
    counts = dict(zip(made, banks.shares(left, len(made)), strict=True))
    text = load_text_inputs(settings, inputs) if "Text" in made else None
    makers = {"Prototype": lambda m: banks.prototypes(inputs.elements, m, settings.prototypes),
              "Cluster": lambda m: banks.clusters(inputs.elements, m, settings.element_choice),
              "Random": lambda m: banks.random(m, inputs.train.width),
              "Text": lambda m: words(settings, inputs, text, m), "Own": lambda m: lambda seed: own}
    return (banks.combined([makers[part](counts.get(part)) for part in settings.parts]),
            identity_of_text(settings, text) if text else {})


if __name__ == "__main__":
    run_script(main, Settings)
