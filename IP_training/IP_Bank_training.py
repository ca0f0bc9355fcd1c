"""Train interpretation predictors on a Random bank (control), a Combined one, or a matrix of your own.

    cd IP_training
    python IP_Bank_training.py --kind Random --model_name resnet50
    python IP_Bank_training.py --kind Combined --parts Prototype,Text --model_name resnet50
    python IP_Bank_training.py --bank my_concepts.npy --bank_names my_concepts.txt --model_name resnet50

A Combined bank shares --num_concepts evenly between its parts; one of your own (part Own, with --bank) goes in whole.
--bank takes any M x D matrix (.npy, .pt, .safetensors).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, path, run_script
from iis.runtime import UserError, nearest
from IP_training.flags import add_element_choice, apply_protocol, training_parser
from IP_training.text_inputs import add_text_flags

PARTS = ("Prototype", "Cluster", "Text", "Random", "Own")


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_text_flags(add_element_choice(training_parser(__doc__.splitlines()[0])))
    script.add_argument("--kind", choices=("Random", "Combined", "Own"), default="Random", help="which bank")
    script.add_argument("--parts", default="Prototype,Text", help=f"of a Combined bank, from {', '.join(PARTS)}")
    script.add_argument("--bank", type=path, metavar="FILE", help="an M x D matrix of your own (--kind Own, or the "
                      "part Own of a Combined bank)")
    script.add_argument("--bank_names", type=path, metavar="FILE", help="its concepts' names, one a line")
    script.add_argument("--prototypes", choices=("balanced", "first"), help="of a Prototype part (default: protocol)")
    return script


def main(args: argparse.Namespace) -> Path:
    """Build the bank of each seed and train the grid. Returns the folder of the ledger."""
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.other_banks import file_bank, own_settings, random_bank
    from IP_training.stacks import fixed
    from IP_training.training_run import run

    apply_protocol(args)
    if args.bank_names and not args.bank:
        raise UserError(f"--bank_names {args.bank_names} names the concepts of --bank FILE: give that too")
    kind = "Own" if args.bank and args.kind == "Random" else args.kind
    parts = _parts(args.parts) if kind == "Combined" else []
    if kind == "Combined" and bool(args.bank) != ("Own" in parts):
        raise UserError("a bank of your own in a Combined one needs both --bank FILE and Own among the --parts "
                        f"(--parts {args.parts})")
    inputs = load_inputs(args, with_elements=bool({"Prototype", "Cluster"} & set(parts)))
    if kind == "Own":
        if args.bank is None:
            raise UserError("--kind Own needs --bank FILE")
        bank = file_bank(args.bank, inputs.train.width, args.bank_names)
        if args.num_concepts not in (None, len(bank)):
            raise UserError(f"--num_concepts {args.num_concepts}, but {args.bank} has {len(bank)}; leave it out")
        make = lambda inputs, count, seed: bank  # noqa: E731
        return run(args, kind, inputs, fixed(make), len(bank), own_settings(args.bank, bank))
    if kind == "Random":
        make = lambda inputs, count, seed: random_bank(count, inputs.train.width, seed.number)  # noqa: E731
        return run(args, kind, inputs, fixed(make), concepts_wanted(args), {})
    from IP_training.combined import plan_combined

    num_concepts = concepts_wanted(args)
    make, settings = plan_combined(args, inputs, parts, num_concepts)
    return run(args, kind, inputs, fixed(make), num_concepts, {"parts": parts, **settings})


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts {part} is not known{nearest(part, PARTS)}")
        if parts.count(part) > 1:
            raise UserError(f"--parts {text} names {part} twice; every part gets its share once")
    if len(parts) < 2:
        raise UserError(f"--parts {text}: a Combined bank needs at least two")
    return parts


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
