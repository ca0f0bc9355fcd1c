"""The explanation script: a page that fetches nothing, escaped text, tables that add up, and clear refusals."""

import csv
import json
import re

import pytest
import torch
from bank_runs import own_caches  # noqa: F401 - a fixture that every test here takes
from explained_runs import explained_run, features, predictor_of
from PIL import Image

from iis.backbones import load_backbone
from iis.datasets import Dataset
from iis.embedding_file import Embeddings
from iis.cli import parse
from iis.runtime import UserError, write_text
from reproduction import explain
from reproduction.lib import explained_images as subjects
from reproduction.lib.explained_images import concept_of, concepts_of
from reproduction.lib.explanation import explain as explain_all
from reproduction.lib.explanation import load_predictor
from reproduction.lib.page import render
from reproduction.lib.run_files import embeddings_of
from reproduction.lib.explanation_shown import if_removed, stories
from reproduction.lib.explained_images import Subject, embed_images, spread


def script(run, out, *words):
    return explain.main(parse(explain.Settings, ["--run", str(run), "--out", str(out), *map(str, words)]))


@pytest.fixture
def run(toy, monkeypatch):
    """A run, with its data set in place."""
    folder, dataset = explained_run(toy)
    monkeypatch.setattr(subjects, "load_dataset", lambda name: dataset)
    return folder


def test_a_class_from_the_command_line(run, toy):
    out = script(run, toy / "out", "--class", "class 2", "--num_images", 3, "--top", 4)
    page = (out / "explanation.html").read_text()
    assert page.count('<article class="card">') == 4  # the class and three images
    assert page.count("<img") >= 3 + 4 * 4
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)|https?:|file:|url\(|@import|<script|<link""", page)
    assert not outside
    told = json.loads((out / "explanation.json").read_text())
    assert told["ratio"] == 0.7 and told["kept"] == 6 and told["class"]["count"] == 50
    for story in told["pictures"]:
        assert story["true"] == "class 2" and len(story["concepts"]) == 6
        parts = sum(concept["to_predicted"] for concept in story["concepts"]) + story["bias_predicted"]
        assert parts == pytest.approx(story["logit_predicted"], abs=1e-4)
        moved = sum(concept["margin"] for concept in story["concepts"])
        assert moved + story["bias_predicted"] - story["bias_runner_up"] == pytest.approx(story["margin"], abs=1e-4)
        sizes = [abs(concept["margin"]) for concept in story["concepts"]]
        assert sizes == sorted(sizes, reverse=True)
    with open(out / "explanation.csv", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 3 * 6 and lines[0]["evidence"].startswith("class ")
    assert all((out / f"explanation.{kind}").stat().st_size for kind in ("png", "pdf"))


def test_rows_and_files_of_the_data_set_are_the_same_images(run, toy):
    names = ["class 1/val_5.png", "class 0/val_0.png"]
    out = script(run, toy / "out", "--rows", "5,0", "--top", 1)
    told = json.loads((out / "explanation.json").read_text())["pictures"]
    assert [story["picture"] for story in told] == names
    args = parse(explain.Settings, ["--run", str(run), "--images", names[0], str(toy / "images/val" / names[1])])
    predictor = load_predictor(run)
    found, of_class = explain.chosen(args, predictor, *embeddings_of(run, predictor.identity, "val"))
    assert of_class is None and [one.name for one in found] == names and [one.label for one in found] == [1, 0]
    logits_NC = explain_all(predictor, torch.stack([one.features_D for one in found])).logits_NC
    assert logits_NC.max(1).values.tolist() == pytest.approx([story["logit_predicted"] for story in told], abs=1e-4)


def test_bad_input_is_one_sentence(run, toy):
    for words, said in ((["--class", "class 9"], "there is no class 'class 9'; did you mean"),
                        (["--rows", "200"], "rows 0 to 199"), (["--rows", "x"], "comma-separated list of row numbers"),
                        (["--rows", "1", "--class", "class 1"], "do not go together"),
                        (["--images", toy / "none.png"], "there is no image"),
                        (["--images", toy / "val.pt"], "cannot be read as an image"),
                        (["--elements", toy / "nowhere"], "name their folder with --elements"),
                        (["--elements", toy], "there is no image .*name the folder of the elements"),
                        (["--val_pt", toy / "train.pt"], "train.pt holds other numbers than"),
                        (["--num_images", "101"], "101 images do not fit on one page; name at most 100"),
                        (["--ratio", "0.3"], "there are 0.5, 0.7, 0.9"), (["--seed", "5"], "--seed can be 0, 1")):
        with pytest.raises(UserError, match=said):
            script(run, toy / "refused", *words)
    (toy / "images" / "val" / "class 0" / "val_0.png").unlink()
    with pytest.raises(UserError, match="has no image 'class 0/val_0.png'"):
        script(run, toy / "refused", "--rows", "0")
    Image.new("RGB", (4, 4)).save(toy / "strange.png")
    with pytest.raises(UserError, match="there is no configuration"):  # this backbone exists nowhere
        script(run, toy / "refused", "--images", toy / "strange.png")


def test_names_and_words_are_escaped():
    evil = '<script>alert("&")</script>'
    predictor = predictor_of()
    predictor.class_names[:] = [evil] * 3
    predictor.evidence[:] = [[evil]] * 8
    subject = Subject(evil, Image.new("RGB", (4, 4)), 0, features(1)[0])
    told = stories(predictor, explain_all(predictor, features(1)), [subject])
    lines = [{"concept": 0, "evidence": [evil], "mean": 1.0, "kept": 1.0, "activation": 1.0, "recall": 1.0,
              "without": 0.5}]
    concepts = concepts_of(told[0]["concepts"] + lines, "Text", None)
    identity = {"model": evil, "dataset": evil, "bank": evil}
    page = render("explanation.html", title=evil, identity=identity, size=8, kept=4, ratio=0.5, asked=False, seed=0,
                  top1=0.5, negative=0.5, warnings=[evil], told=told, images=[subject.image], concepts=concepts, top=5,
                  of_class={"name": evil, "count": 1, "lines": lines})
    assert "<script" not in page and page.count("&lt;script&gt;") >= 5 + 4 + 3 + 4  # concepts, card, class and head


def test_what_is_said_of_a_removal():
    story = {"predicted": "star", "probability": 0.912}
    still = {"without_class": "star", "without_probability": 0.74, "predicted_without": 0.74}
    other = {"without_class": "circle", "without_probability": 0.551, "predicted_without": 0.3}
    assert if_removed(story, still).replace("\xa0", " ") == "still star, 91.2 % → 74.0 %"
    assert if_removed(story, other).replace("\xa0", " ") == "becomes circle, 55.1 %; star 91.2 % → 30.0 %"


def test_evidence_is_images_or_words(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (3, 2)).save(tmp_path / "a" / "1.png")
    shown = concept_of(4, ["Prototype: a/1.png"], "Combined", tmp_path)
    assert shown.label == "concept 4, cut from a" and [one.mode for one in shown.images] == ["RGB"]
    assert concept_of(5, ["Text: red: bright"], "Combined", tmp_path).label == "red: bright"
    assert concept_of(6, ["striped"], "Text", None) == concept_of(6, ["striped"], "Text", tmp_path)
    assert "empty slot" in concept_of(7, [], "End2End", tmp_path).label


def test_spread():
    assert spread(range(10), 3) == [0, 3, 6] and spread([4, 5], 8) == [4, 5]


def test_other_images_go_through_the_backbone_the_features_came_from(tmp_path, capsys):
    settings = "model: demo/small_backbones.py:shapes_small\nweights: none\nval_resize_size: 64\nval_crop_size: 64\n"
    backbone = load_backbone("demo/small_backbones.py:shapes_small", "none", "cpu", 0, resize=64, crop=64)
    val = Embeddings(torch.zeros(1, 32), torch.zeros(1, dtype=torch.int64), ["a"], ["a/0.png"], {
        "weights_hash": backbone.weights_hash, "preprocessing": backbone.preprocessing, "node": "head_input",
        "precision": "fp32"})
    file = tmp_path / "toy_val_toy_fc.pt"
    write_text(tmp_path / "toy_val_toy_fc.pt.settings.yaml", settings + "seed: 0\n")
    write_text(tmp_path / "other.yaml", settings + "seed: 1\n")
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    found_ND = embed_images([Image.fromarray(noise.numpy())], val, file, device="cpu")
    mean, std = (torch.tensor(backbone.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():  # the net without its last layer, by hand
        by_hand = backbone.module[:-1](((noise.permute(2, 0, 1) / 255 - mean) / std)[None])
    torch.testing.assert_close(found_ND, by_hand)
    with pytest.raises(UserError, match="differs in weights_hash"):
        embed_images([Image.fromarray(noise.numpy())], val, file, str(tmp_path / "other.yaml"), "cpu")
    val.provenance = {}
    with pytest.raises(UserError, match="does not say which backbone"):
        embed_images([Image.fromarray(noise.numpy())], val, file, device="cpu")


def test_a_image_of_the_data_set_keeps_its_label(toy, monkeypatch):
    images = toy / "images" / "val" / "class 0"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "val_0.png")
    monkeypatch.setattr(subjects, "load_dataset", lambda name: Dataset("toy", toy / "images"))
    val = Embeddings(torch.ones(1, 3), torch.tensor([0]), ["class 0"], ["class 0/val_0.png"])
    (found,) = subjects.from_files([str(images / "val_0.png")], val, toy / "val.pt", "toy")
    assert found.label == 0 and found.name == "class 0/val_0.png" and found.features_D.tolist() == [1, 1, 1]
