"""Filter a list of concepts: too long, too close to a class name, too close to one another.

    python concept_library/filter_concepts.py --concept_set my_concepts.txt --classes cifar100 --out my_filtered.txt

Writes the concepts that stay, one a line, and beside them OUT's name with `.dropped.json`: what went and why.
Takes about ten seconds for 4,500 concepts against ImageNet's names on one core.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from concept_library.concept_filter import Outcome, by_embedding, by_spelling, filter_list, text_embedder
from concept_library.concept_lists import read_class_names, read_concepts
from iis.cli import ScriptParser, path, run_script
from iis.runtime import UserError, write_json, write_text


def parser() -> ScriptParser:
    """The flags of this script."""
    flags = ScriptParser(description=__doc__.splitlines()[0])
    flags.add_argument("--concept_set", type=path, required=True,
                       help="the list: .txt with a concept a line, a JSON list, or JSON of class -> concepts")
    flags.add_argument("--classes", required=True,
                       help="class names to keep away from: a file, a name in textual/classes/, or imagenet")
    flags.add_argument("--out", type=path, required=True, help="the filtered list, one concept a line")
    flags.add_argument("--max_length", type=int, default=30, help="longest concept, in characters")
    flags.add_argument("--class_similarity", type=float, default=0.85,
                       help="drop what is more like a class name than this, in [0, 1]")
    flags.add_argument("--concept_similarity", type=float, default=0.9,
                       help="drop what is more like an earlier concept than this, in [0, 1]")
    flags.add_argument("--text_model", default="none",
                       help="open_clip model whose text cosine is the similarity; none compares spellings")
    flags.add_argument("--text_weights", default=None, help="its checkpoint, or a tag of open_clip such as openai")
    return flags


def main(args: argparse.Namespace | None = None) -> Outcome:
    """Filter the list, write it and the report, print a summary; returns what stayed and what went."""
    args = args or parser().settings()
    if args.text_model == "none":
        if args.text_weights:
            raise UserError("--text_weights needs --text_model: name the open_clip model they belong to")
        measure, similarity = by_spelling, "normalised spelling"
    elif not args.text_weights:
        raise UserError(f"--text_model {args.text_model} without weights would be random: name --text_weights")
    else:
        measure = by_embedding(text_embedder(args.text_model, args.text_weights))
        similarity = f"text cosine of {args.text_model} ({Path(args.text_weights).name})"

    concepts, duplicates = read_concepts(args.concept_set)
    outcome = filter_list(concepts, read_class_names(args.classes), measure, args.max_length,
                          args.class_similarity, args.concept_similarity)
    if not outcome.kept:
        raise UserError(f"nothing is left of the {len(concepts)} concepts in {args.concept_set}: the first went for "
                        f"{outcome.dropped[0]['reason']}; loosen --max_length or the two similarities")

    counts = {reason: sum(entry["reason"] == reason for entry in outcome.dropped)
              for reason in ("length", "class", "concept")}
    write_text(args.out, "\n".join(outcome.kept) + "\n")
    write_json(args.out.with_suffix(".dropped.json"), {
        "concept_set": args.concept_set.name, "classes": Path(args.classes).name, "similarity": similarity,
        "max_length": args.max_length, "class_similarity": args.class_similarity,
        "concept_similarity": args.concept_similarity, "read": len(concepts) + len(duplicates),
        "kept": len(outcome.kept), "counts": {"duplicate": len(duplicates), **counts},
        "duplicates": duplicates, "dropped": outcome.dropped})
    print(f"{args.concept_set.name}: {len(concepts) + len(duplicates)} read, {len(outcome.kept)} kept; dropped "
          f"{len(duplicates)} duplicates, {counts['length']} longer than {args.max_length} characters, "
          f"{counts['class']} close to a class name, {counts['concept']} close to an earlier concept "
          f"(by {similarity}); reasons in {args.out.with_suffix('.dropped.json').name}")
    return outcome


if __name__ == "__main__":
    run_script(main)
