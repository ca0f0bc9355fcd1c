"""What the filter drops and why, worked out by hand; the quick search against every pair by difflib."""

import difflib
import json

import numpy as np
import pytest

from concept_library import concept_filter, filter_concepts
from concept_library.concept_filter import by_embedding, by_spelling, filter_list, normalised, spelling_similarity
from concept_library.concept_lists import TEXTUAL, read_class_names, read_concepts
from iis.cli import parse
from iis.runtime import UserError


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
    assert found == slow
    assert len(slow) > 20


def test_nothing_to_compare():
    assert by_spelling([], ["a"], 0.5) == by_spelling(["a"], [], 0.5) == []
    assert filter_list(["one", "two"], [], by_spelling).kept == ["one", "two"]


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


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """An open_clip model of one's own: its config beside its checkpoint, random weights."""
    open_clip = pytest.importorskip("open_clip")
    import torch

    folder = tmp_path_factory.mktemp("clip")
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16,
                                                "head_width": 16},
              "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    (folder / "tiny-filter-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-filter-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-filter-clip").state_dict(), folder / "tiny.pt")
    return folder / "tiny.pt"


def test_text_model_of_ones_own(tiny_clip, tmp_path):
    embed = concept_filter.text_embedder("tiny-filter-clip", str(tiny_clip))
    rows_TD = embed(["red tail", "blue tail", "red tail"])
    assert rows_TD.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(rows_TD, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows_TD[0], rows_TD[2], atol=1e-6)
    (tmp_path / "mine.txt").write_text("Red tail\nred tail!\nbird\n")
    outcome = run("--concept_set", tmp_path / "mine.txt", "--classes", "cifar10", "--out", tmp_path / "kept.txt",
                  "--text_model", "tiny-filter-clip", "--text_weights", tiny_clip,
                  "--class_similarity", 0.99999, "--concept_similarity", 1.1)
    assert [entry["concept"] for entry in outcome.dropped] == ["bird"]
    report = json.loads((tmp_path / "kept.dropped.json").read_text())
    assert report["similarity"] == "text cosine of tiny-filter-clip (tiny.pt)"


def test_text_model_refuses(tiny_clip, tmp_path):
    with pytest.raises(UserError, match="no CLIP ViT-B-17; did you mean .*ViT-B-16"):
        concept_filter.text_embedder("ViT-B-17", "openai")
    with pytest.raises(UserError, match="there is no file .*absent.pt"):
        concept_filter.text_embedder("ViT-B/16", str(tmp_path / "absent.pt"))
    (tmp_path / "broken.pt").write_bytes(tiny_clip.read_bytes()[:1000])
    with pytest.raises(UserError, match="broken.pt is truncated"):
        concept_filter.text_embedder("tiny-filter-clip", str(tmp_path / "broken.pt"))
