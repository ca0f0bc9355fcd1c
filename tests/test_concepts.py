"""Concept lists: what the filter drops, by hand and against difflib; every form loads, every defect is named."""

import difflib
import json

import numpy as np
import pytest

from concept_library import filter_concepts
from concept_library.concept_filter import by_embedding, by_spelling, filter_list, normalised, spelling_similarity
from concept_library.concept_lists import CLASSES, TEXTUAL, read_class_names, read_concepts
from iis.cli import parse
from iis.runtime import UserError
from tests.test_clip import make


@pytest.mark.parametrize(("text", "plain"), [
    ("The Foxes", "fox"), ("a bird's-eye view", "bird eye view"), ("Crème brûlée", "creme brulee"),
    ("cities", "city"), ("glasses", "glass"), ("grass", "grass"), ("bus", "bus"), ("iris", "iris"), ("gas", "gas"),
    ("striped tails", "striped tail"), ("the", "the"),
])
def test_normalised(text, plain):
    assert normalised(text) == plain


def test_spelling_similarity_by_hand():
    assert spelling_similarity("rose bush", "bush rose") == 1.0
    assert spelling_similarity("goldfish", "goldfsh") == pytest.approx(2 * 7 / 15)  # one letter less
    assert spelling_similarity("beak", "beaker") == pytest.approx(0.8)
    assert spelling_similarity("abcd", "wxyz") == 0.0
    assert spelling_similarity("hopping", "shopping") == spelling_similarity("shopping", "hopping")


def test_filter_by_hand():
    concepts = ["striped tail", "golden retrievers", "goldfsh", "a concept of more than thirty characters",
                "striped tails", "fins", "tail, striped", "exactly thirty characters long"]
    outcome = filter_list(concepts, ["goldfish", "golden retriever"], by_spelling)
    assert outcome.kept == ["striped tail", "fins", "exactly thirty characters long"]
    assert outcome.dropped == [
        {"concept": "a concept of more than thirty characters", "reason": "length", "characters": 40},
        {"concept": "golden retrievers", "reason": "class", "close_to": "golden retriever", "similarity": 1.0},
        {"concept": "goldfsh", "reason": "class", "close_to": "goldfish", "similarity": 0.9333},
        {"concept": "striped tails", "reason": "concept", "close_to": "striped tail", "similarity": 1.0},
        {"concept": "tail, striped", "reason": "concept", "close_to": "striped tail", "similarity": 1.0}]


def test_a_dropped_concept_drops_nothing_itself():
    rows = np.array([[1, 0], [0.8, 0.6], [0.28, 0.96]])  # cosines: 0-1 0.8, 1-2 0.8, 0-2 0.28
    where = {word: row for word, row in zip("abc", rows, strict=True)}
    measure = by_embedding(lambda texts: np.array([where[text] for text in texts]), block=2)
    outcome = filter_list(list("abc"), ["a"], measure, class_similarity=1.0, concept_similarity=0.7)
    assert outcome.kept == ["a", "c"]
    assert outcome.dropped == [{"concept": "b", "reason": "concept", "close_to": "a", "similarity": 0.8}]
    outcome = filter_list(list("bc"), ["a"], measure, class_similarity=0.7, concept_similarity=0.7)
    assert outcome.kept == ["c"]


def test_quick_search_finds_every_pair():
    rows = read_concepts(TEXTUAL / "cifar100_filtered.txt")[0][::6]
    columns = read_class_names("cifar100") + [word + "s" for word in rows[::7]]
    found = {(row, column) for row, column, _ in by_spelling(rows, columns, 0.6)}
    slow = set()
    for i, row in enumerate(map(normalised, rows)):
        for j, column in enumerate(map(normalised, columns)):
            ratio = difflib.SequenceMatcher(None, *sorted((row, column)), autojunk=False).ratio()
            if ratio > 0.6 or set(row.split()) == set(column.split()):
                slow.add((i, j))
    assert found == slow and len(slow) > 20
    assert by_spelling([], ["a"], 0.5) == by_spelling(["a"], [], 0.5) == []  # nothing to compare


def run(*words):
    return filter_concepts.main(parse(filter_concepts.Settings, [str(word) for word in words]))


def test_script_writes_list_report_and_summary(tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps({"x": ["whiskers", "cats", "Whiskers"], "y": ["wet nose"]}))
    run("--concept_set", tmp_path / "mine.json", "--classes", "cifar10", "--out", tmp_path / "kept.txt")
    assert (tmp_path / "kept.txt").read_text() == "whiskers\nwet nose\n"
    report = json.loads((tmp_path / "kept.dropped.json").read_text())
    assert report["counts"] == {"duplicate": 1, "length": 0, "class": 1, "concept": 0}
    assert report["similarity"] == "normalised spelling"
    assert report["dropped"] == [{"concept": "cats", "reason": "class", "close_to": "cat", "similarity": 1.0}]
    assert "4 read, 2 kept" in capsys.readouterr().out


def test_script_refuses(tmp_path):
    (tmp_path / "mine.txt").write_text("cat\ndogs\n")
    common = ["--concept_set", tmp_path / "mine.txt", "--classes", "cifar10", "--out", tmp_path / "kept.txt"]
    with pytest.raises(UserError, match="nothing is left of the 2 concepts"):
        run(*common)
    with pytest.raises(UserError, match="would be random"):
        run(*common, "--text_model", "ViT-B/16")
    with pytest.raises(UserError, match="--text_weights needs --text_model"):
        run(*common, "--text_weights", "openai")
    assert not (tmp_path / "kept.txt").exists()


def test_a_clip_of_ones_own_measures_by_text_cosine(tmp_path):
    weights = make(tmp_path, "tiny-filter-clip")
    (tmp_path / "mine.txt").write_text("Red tail\nred tail!\nbird\n")
    flags = ["--concept_set", tmp_path / "mine.txt", "--classes", "cifar10", "--out", tmp_path / "kept.txt",
             "--class_similarity", 0.99999, "--concept_similarity", 1.1]
    outcome = run(*flags, "--text_model", "tiny-filter-clip", "--text_weights", weights)
    assert [entry["concept"] for entry in outcome.dropped] == ["bird"]
    report = json.loads((tmp_path / "kept.dropped.json").read_text())
    assert report["similarity"] == "text cosine of tiny-filter-clip (tiny-filter-clip.pt)"
    for name, file, sentence in (("ViT-B-17", "openai", "no CLIP ViT-B-17; did you mean .*ViT-B-16"),
                                 ("ViT-B/16", tmp_path / "absent.pt", "there is no file .*absent.pt")):
        with pytest.raises(UserError, match=sentence):
            run(*flags, "--text_model", name, "--text_weights", file)


# ---- lists ----

AT_LEAST = {"shapes": 40, "cifar10": 120, "cifar100": 800, "cub": 300, "imagenet": 2500}


def test_text_list_keeps_order_and_spelling_without_duplicates(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffStriped  tail\r\n\r\nhooked beak\r\nstriped tail\r\ncrème glaze\r\n".encode())
    assert read_concepts(file) == (["Striped tail", "hooked beak", "crème glaze"], ["striped tail"])


def test_json_of_classes_loads_like_a_list(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"cat": ["whiskers", "tail"], "dog": ["tail", "floppy ears"], "fish": "fins"}))
    assert read_concepts(file) == (["whiskers", "tail", "floppy ears", "fins"], ["tail"])
    file.write_text('["whiskers", "fins"]')
    assert read_concepts(file) == (["whiskers", "fins"], [])


@pytest.mark.parametrize(("name", "content", "message"), [
    ("empty.txt", b"\n  \n", "holds no concepts"),
    ("empty.json", b"{}", "holds no concepts"),
    ("latin.txt", "crème".encode("latin-1"), "not UTF-8"),
    ("broken.json", b'{"cat": [', "neither a JSON list"),
    ("numbers.json", b'{"cat": [1, 2]}', "neither a JSON list"),
    ("number.json", b"3", "neither a JSON list"),
    ("nested.json", b'{"cat": 3}', "neither a JSON list"),
])
def test_defects_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_concepts(tmp_path / name)


def test_missing_list_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="imagenet_filtered.txt"):
        read_concepts(tmp_path / "imagnet_filtered.txt")
    with pytest.raises(UserError, match="cifar100"):
        read_class_names("cifar1000")


def test_class_names(tmp_path):
    (tmp_path / "names.txt").write_text("aquarium_fish\nbear\n")
    assert read_class_names(tmp_path / "names.txt") == ["aquarium fish", "bear"]
    assert [len(read_class_names(name)) for name in ("cifar10", "cifar100", "cub", "shapes")] == [10, 100, 200, 8]
    assert "Black footed Albatross" in read_class_names("cub")
    imagenet = read_class_names("imagenet")
    assert {"tench", "Tinca tinca", "toilet tissue", "bathroom tissue"} <= set(imagenet)
    assert read_class_names(CLASSES / "cifar10.txt") == read_class_names("cifar10")


@pytest.mark.parametrize("name", AT_LEAST)
def test_committed_list_is_filtered(name):
    concepts, duplicates = read_concepts(TEXTUAL / f"{name}_filtered.txt")
    assert len(concepts) >= AT_LEAST[name]
    assert not duplicates
    assert [concept for concept in concepts if concept != concept.lower() or not concept.isprintable()] == []
    outcome = filter_list(concepts, read_class_names(name), by_spelling)
    assert outcome.dropped == []
    assert outcome.kept == concepts


def test_shapes_list_has_every_painted_attribute():
    world = pytest.importorskip("demo.shapes_world")
    concepts = set(read_concepts(TEXTUAL / "shapes_filtered.txt")[0])
    painted = {word for words in world.ATTRIBUTES.values() for word in words} | set(world.CLUTTER)
    assert painted <= concepts
    assert {name.replace("_", " ") for name in world.RULES} == set(read_class_names("shapes"))
