"""Which concepts of a list stay: not too long, not close to a class name, not close to one another.

In the spirit of LF-CBM's filter (Oikarinen et al., ICLR 2023, section 3). How close two words are is either the
cosine of their text embeddings or, where no text model is at hand, the likeness of their spelling.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np

# Finds every (row, column, similarity) whose similarity is above a bound.
Pairs = list[tuple[int, int, float]]
Measure = Callable[[list[str], list[str], float], Pairs]


@dataclass
class Outcome:
    """The concepts that stay, and why each other one went: concept, reason, and for the two similarities the
    class name or kept concept it is close to and how close."""

    kept: list[str] = field(default_factory=list)
    dropped: list[dict[str, object]] = field(default_factory=list)


def filter_list(concepts: list[str], class_names: list[str], measure: Measure, max_length: int = 30,
                class_similarity: float = 0.85, concept_similarity: float = 0.9) -> Outcome:
    """Drop, in this order: longer than max_length characters; more like a class name than class_similarity; more
    like an earlier kept concept than concept_similarity. The order of the list is kept; a second run drops nothing.
    """
    outcome, short = Outcome(), [concept for concept in concepts if len(concept) <= max_length]
    outcome.dropped += [{"concept": concept, "reason": "length", "characters": len(concept)}
                        for concept in concepts if len(concept) > max_length]
    nearest_class: dict[int, tuple[float, int]] = {}
    for row, column, similarity in measure(short, class_names, class_similarity):
        nearest_class[row] = max(nearest_class.get(row, (0.0, 0)), (similarity, column))
    for row, (similarity, column) in sorted(nearest_class.items()):
        outcome.dropped.append(_likeness(short[row], "class", class_names[column], similarity))
    left = [concept for row, concept in enumerate(short) if row not in nearest_class]

    earlier: dict[int, Pairs] = {}
    for row, column, similarity in measure(left, left, concept_similarity):
        if column < row:
            earlier.setdefault(row, []).append((row, column, similarity))
    gone = set()
    for row, concept in enumerate(left):
        close = [(similarity, column) for _, column, similarity in earlier.get(row, []) if column not in gone]
        if close:
            gone.add(row)
            similarity, column = max(close)
            outcome.dropped.append(_likeness(concept, "concept", left[column], similarity))
        else:
            outcome.kept.append(concept)
    return outcome


def _likeness(concept: str, reason: str, other: str, similarity: float) -> dict[str, object]:
    return {"concept": concept, "reason": reason, "close_to": other, "similarity": round(similarity, 4)}


# ---- spelling ----

def normalised(text: str) -> str:
    """Lower case without accents, punctuation, articles and (naively) plurals: "The Foxes' dens" is "fox den"."""
    text = unicodedata.normalize("NFKD", text.casefold())
    text = "".join(letter for letter in text if not unicodedata.combining(letter)).replace("'", "")
    words = re.sub(r"[^a-z0-9]+", " ", text).split()
    return " ".join(_singular(word) for word in words if word not in ("a", "an", "the")) or text


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zzes")) else word[:-1]


def spelling_similarity(first: str, second: str) -> float:
    """Likeness in [0, 1] of two normalised texts: 1 for the same words in any order, else difflib's ratio,
    2 · matching characters ÷ all characters."""
    if set(first.split()) == set(second.split()):
        return 1.0
    first, second = sorted((first, second))  # difflib's ratio depends on the order
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def by_spelling(rows: list[str], columns: list[str], above: float) -> Pairs:
    """Every pair whose `spelling_similarity` is greater than `above`.

    Two texts cannot match in more characters than they have in common in any order, so the exact ratio is worked
    out only where that bound allows it: 4,500 x 4,500 pairs take seconds instead of an hour.
    """
    rows, columns = [normalised(text) for text in rows], [normalised(text) for text in columns]
    counts_RL, counts_CL = _letter_counts(rows), _letter_counts(columns)
    lengths_C = counts_CL.sum(axis=1, dtype=np.int64)
    pairs: Pairs = []
    for row, text in enumerate(rows):
        shared_C = np.minimum(counts_RL[row], counts_CL).sum(axis=1, dtype=np.int64)
        # Repeated words count once in a set of words, so equal sets could slip under the bound: rare, and harmless.
        for column in np.flatnonzero(2 * shared_C > above * (len(text) + lengths_C)):
            similarity = spelling_similarity(text, columns[column])
            if similarity > above:
                pairs.append((row, int(column), similarity))
    return pairs


def _letter_counts(texts: list[str]) -> np.ndarray:
    counts = np.zeros((len(texts), 38), dtype=np.uint8)  # a-z, 0-9, space, anything else: (T, L)
    place = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789 ")}
    for row, text in enumerate(texts):
        for letter in text[:255]:
            counts[row, place.get(letter, 37)] += 1
    return counts


# ---- text embeddings ----

def by_embedding(embed: Callable[[list[str]], np.ndarray], block: int = 1024) -> Measure:
    """A measure from `embed`, which gives T unit rows of width D for T texts; cosines are taken a block at a time."""

    def measure(rows: list[str], columns: list[str], above: float) -> Pairs:
        if not rows or not columns:
            return []
        rows_RD = embed(rows)
        columns_CD = rows_RD if columns is rows else embed(columns)
        pairs: Pairs = []
        for start in range(0, len(rows_RD), block):
            cosines_BC = rows_RD[start:start + block] @ columns_CD.T
            pairs += [(start + int(row), int(column), float(cosines_BC[row, column]))
                      for row, column in np.argwhere(cosines_BC > above)]
        return pairs

    return measure
