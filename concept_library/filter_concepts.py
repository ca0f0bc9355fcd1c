"""Filter a list of concepts: too long, too close to a class name, too close to one another.

    python concept_library/filter_concepts.py --concept_set my_concepts.txt --classes cifar100 --out my_filtered.txt

Writes the concepts that stay, one a line, and beside them OUT's name with `.dropped.json`: what went and why.
Takes about ten seconds for 4,500 concepts against ImageNet's names on one core.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from concept_library.concept_filter import Outcome, by_embedding, by_spelling, filter_list
from concept_library.concept_lists import read_class_names, read_concepts
from iis.cli import run_script, setting
from iis.runtime import UserError, write_json, write_text


@dataclass(kw_only=True)
class Settings:
    """Filter"""

    concept_set: Path = setting(help="the list: .txt with a concept a line, a JSON list, or JSON of class -> concepts")
    classes: str = setting(help="class names to keep away from: a file, a name in textual/classes/, or imagenet")
    out: Path = setting(help="the filtered list, one concept a line")
    max_length: int = setting(30, "longest concept, in characters")
    class_similarity: float = setting(0.85, "drop what is more like a class name than this, in [0, 1]")
    concept_similarity: float = setting(0.9, "drop what is more like an earlier concept than this, in [0, 1]")
    text_model: str = setting("none", "CLIP whose text cosine is the similarity; none compares spellings")
    text_weights: str | None = setting(None, "its checkpoint, or a tag of open_clip such as openai")


def main(settings: Settings) -> Outcome:
    """Filter the list, write it and the report, print a summary; returns the kept and the dropped concepts."""
    if settings.text_model == "none":
        if settings.text_weights:
            raise UserError("--text_weights needs --text_model: name the open_clip model they belong to")
        measure, similarity = by_spelling, "normalised spelling"
    elif not settings.text_weights:
        raise UserError(f"--text_model {settings.text_model} without weights would be random: name --text_weights")
    else:
        from extractor.clip import load_clip  # this script alone: extractor/ imports the lists of this folder

        clip = load_clip(settings.text_model, settings.text_weights)
        measure = by_embedding(lambda texts: clip.encode_words(texts).numpy())  # (T, D)
        similarity = f"text cosine of {settings.text_model} ({Path(settings.text_weights).name})"

    concepts, duplicates = read_concepts(settings.concept_set)
    outcome = filter_list(concepts, read_class_names(settings.classes), measure, settings.max_length,
                          settings.class_similarity, settings.concept_similarity)
    if not outcome.kept:
        raise UserError(f"nothing is left of the {len(concepts)} concepts in {settings.concept_set}: the first went "
                        f"for {outcome.dropped[0]['reason']}; loosen --max_length or the two similarities")
    counts = {why: sum(row["reason"] == why for row in outcome.dropped) for why in ("length", "class", "concept")}
    write_text(settings.out, "\n".join(outcome.kept) + "\n")
    write_json(settings.out.with_suffix(".dropped.json"), {
        "concept_set": settings.concept_set.name, "classes": Path(settings.classes).name, "similarity": similarity,
        "max_length": settings.max_length, "class_similarity": settings.class_similarity,
        "concept_similarity": settings.concept_similarity, "read": len(concepts) + len(duplicates),
        "kept": len(outcome.kept), "counts": {"duplicate": len(duplicates), **counts},
        "duplicates": duplicates, "dropped": outcome.dropped})
    print(f"{settings.concept_set.name}: {len(concepts) + len(duplicates)} read, {len(outcome.kept)} kept; dropped "
          f"{len(duplicates)} duplicates, {counts['length']} longer than {settings.max_length} characters, "
          f"{counts['class']} close to a class name, {counts['concept']} close to an earlier concept "
          f"(by {similarity}); reasons in {settings.out.with_suffix('.dropped.json').name}")
    return outcome


if __name__ == "__main__":
    run_script(main, Settings)
