"""Lists of concepts and class names: every form loads, every defect is named, the committed lists are filtered."""

import json

import pytest

from concept_library.concept_filter import by_spelling, filter_list
from concept_library.concept_lists import CLASSES, TEXTUAL, read_class_names, read_concepts
from iis.runtime import UserError

AT_LEAST = {"shapes": 40, "cifar10": 120, "cifar100": 800, "cub": 300, "imagenet": 2500}


def test_text_list_keeps_order_and_spelling_and_tells_duplicates(tmp_path):
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


def test_class_names():
    assert [len(read_class_names(name)) for name in ("cifar10", "cifar100", "cub", "shapes")] == [10, 100, 200, 8]
    assert "Black footed Albatross" in read_class_names("cub")
    imagenet = read_class_names("imagenet")
    assert {"tench", "Tinca tinca", "toilet tissue", "bathroom tissue"} <= set(imagenet)
    assert read_class_names(CLASSES / "cifar10.txt") == read_class_names("cifar10")


def test_underscores_of_folder_names_are_spaces(tmp_path):
    (tmp_path / "names.txt").write_text("aquarium_fish\nbear\n")
    assert read_class_names(tmp_path / "names.txt") == ["aquarium fish", "bear"]


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
