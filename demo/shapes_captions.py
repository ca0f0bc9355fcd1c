"""One English sentence for each scene of `shapes`, in varied words and order, and its true concepts.

Everything said can be seen: the attribute words are those of `ATTRIBUTES`, and positions are not mentioned, so a
mirrored picture keeps its caption.
"""

from __future__ import annotations

from collections import Counter

from demo.shapes_world import Scene
from iis.runtime import numpy_rng

TEXTURE_PHRASES = {"plain": "without a pattern", "striped": "with stripes", "dotted": "with dots",
                   "checked": "with checks"}
TEMPLATES = (
    "{A} {size} {colour} {texture} {shape} on {a_background}{with_others}.",
    "On {a_background} there is {a} {size} {texture} {shape} in {colour}{with_others}.",
    "{A} {texture} {colour} {shape}, {size}, before {a_background}{with_others}.",
    "The {shape} is {size}, {colour} and {texture}; the background is {tone} and {finish}{with_others}.",
    "{A} {size} {shape}, {colour} {texture_phrase}{with_others}, on {a_background}.",
    "{Tone} and {finish} background: {a} {colour} {shape}, {texture} and {size}{with_others}.",
    "This is a picture of {a} {texture} {shape}, {colour} and {size}{with_others}; its background is {finish} and "
    "{tone}.",
)
COUNTS = ("no", "a", "two", "three", "four", "five")


def concepts(of: Scene) -> list[str]:
    """The true concepts of a scene: one word of each group of `ATTRIBUTES`, in that order."""
    return list(of.attributes.values())


def caption(of: Scene) -> str:
    """One sentence that names all concepts of the scene and its clutter."""
    rng = numpy_rng(*of.key, "shapes", "caption")
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    look = of.attributes
    tone, finish = look["background_tone"], look["background_finish"]
    words = {"size": look["size"], "colour": look["colour"], "texture": look["texture"], "shape": look["shape"],
             "tone": tone, "finish": finish, "Tone": tone.capitalize(),
             "texture_phrase": f"and {look['texture']}" if rng.integers(2) else TEXTURE_PHRASES[look["texture"]],
             "a_background": f"a {tone} {finish} background" if rng.integers(2) else f"a {finish} {tone} background",
             "with_others": _others(of, ("with", "beside", "near")[rng.integers(3)])}
    after = template.replace("{A}", "{a}").partition("{a} {")[2].partition("}")[0]
    article = "an" if words.get(after, "")[:1] in "aeiou" and after else "a"
    return template.format(**words, a=article, A=article.capitalize())


def _others(of: Scene, joint: str) -> str:
    counted = Counter(of.clutter)  # in the order in which they were drawn
    phrases = [f"{COUNTS[number]} {colour} {kind}{'es' if kind == 'cross' and number > 1 else 's' * (number > 1)}"
               for (colour, kind), number in counted.items()]
    phrases = [phrase.replace("a orange", "an orange") for phrase in phrases]
    *first, last = phrases
    return f" {joint} " + (", ".join(first) + " and " + last if first else last)
