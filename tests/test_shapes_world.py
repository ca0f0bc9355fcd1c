"""The built-in data set: class rules, painting, captions, the script; and the backbones pre-trained on it."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from conftest import run_script

from demo import paint_shapes, pretrain_backbones, small_backbones
from demo.shapes_captions import TEXTURE_PHRASES, caption, concepts
from demo.shapes_world import ATTRIBUTES, RULES, obeys, paint, scene
from iis.datasets import folder_images
from iis.runtime import UserError

SCENES = [scene(0, "train", index) for index in range(800)]


def test_no_image_obeys_two_rules():
    for words in itertools.product(*ATTRIBUTES.values()):
        attributes = dict(zip(ATTRIBUTES, words, strict=True))
        assert sum(obeys(attributes, rule) for rule in RULES.values()) <= 1


def test_each_scene_obeys_its_rule_and_classes_are_balanced():
    assert all(obeys(of.attributes, RULES[of.class_name]) for of in SCENES)
    assert {name: sum(of.class_name == name for of in SCENES) for name in RULES} == dict.fromkeys(RULES, 100)


def test_no_single_attribute_decides_the_class():
    for group, values in ATTRIBUTES.items():
        for value in values:
            classes = {of.class_name for of in SCENES if of.attributes[group] == value}
            assert len(classes) >= 2, (group, value, classes)


def test_a_image_follows_from_seed_split_and_index():
    first, again = paint(scene(0, "train", 5)), paint(scene(0, "train", 5))
    assert first.mode == "RGB" and first.size == (64, 64)
    assert first.tobytes() == again.tobytes()
    for other in (scene(1, "train", 5), scene(0, "val", 5), scene(0, "train", 13)):
        assert paint(other).tobytes() != first.tobytes()


def test_attributes_can_be_seen():
    """Over many images, warm objects shift the mean colour to red, light backgrounds are brighter."""
    means = np.array([np.asarray(paint(of), dtype=float).mean((0, 1)) for of in SCENES[:240]])
    red_over_blue = means[:, 0] - means[:, 2]
    warm = np.array([of.attributes["colour"] in ("red", "orange", "yellow") for of in SCENES[:240]])
    light = np.array([of.attributes["background_tone"] == "light" for of in SCENES[:240]])
    assert red_over_blue[warm].mean() > red_over_blue[~warm].mean() + 10
    assert means[light].mean() > means[~light].mean() + 50


def test_captions_name_every_concept_and_vary():
    other_words = {word: phrase.removeprefix("with ") for word, phrase in TEXTURE_PHRASES.items()}
    for of in SCENES:
        sentence = caption(of)
        for word in concepts(of):
            pattern = rf"\b({word}|{other_words.get(word, word)})\b"
            assert re.search(pattern, sentence, re.IGNORECASE), (word, sentence)
        assert sentence[0].isupper() and sentence.endswith(".") and "{" not in sentence
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", sentence), sentence
    assert len({caption(of).split(of.attributes["shape"])[0] for of in SCENES}) > 100


def test_clutter_is_counted_in_words():
    from dataclasses import replace

    of = replace(SCENES[0], clutter=(("orange", "cross"), ("blue", "line"), ("orange", "cross")))
    assert "two orange crosses and a blue line" in caption(of)
    assert "an orange blob" in caption(replace(of, clutter=(("orange", "blob"),)))


def test_the_script_paints_the_same_for_any_number_of_workers_and_resumes(tmp_path):
    sizes = ("--train", 24, "--val", 16)
    assert run_script("demo/paint_shapes.py", "--root", tmp_path / "one", "--workers", 1, *sizes).returncode == 0
    two = run_script("demo/paint_shapes.py", "--root", tmp_path / "two", "--workers", 2, *sizes)
    assert "painted 40 of 40" in two.stdout
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert len(files) == 42  # images, captions, manifest
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    lost = next((tmp_path / "two" / "train").rglob("*.png"))
    lost.unlink()
    assert "painted 1 of 40" in run_script("demo/paint_shapes.py", "--root", tmp_path / "two", *sizes).stdout
    assert "in place" in run_script("demo/paint_shapes.py", "--root", tmp_path / "two", *sizes).stdout
    refused = run_script("demo/paint_shapes.py", "--root", tmp_path / "two", "--seed", 1, *sizes)
    assert refused.returncode == 2 and "seed" in refused.stderr

    told = json.loads((tmp_path / "two" / "captions.json").read_text())
    images = folder_images(tmp_path / "two" / "train", "shapes", "train")
    assert images.class_names == sorted(RULES) == sorted(told["rules"])
    assert {f"train/{name}" for name in images.names} <= set(told["images"])
    for entry in told["images"].values():
        assert [word in told["attributes"][group] for group, word in
                zip(told["attributes"], entry["concepts"], strict=True)] == [True] * 6


def test_too_many_images_are_refused(tmp_path):
    done = run_script("demo/paint_shapes.py", "--root", tmp_path, "--train", 5000)
    assert done.returncode == 2 and "4000" in done.stderr


@pytest.mark.parametrize("name, width", [("shapes_small", 32), ("shapes_medium", 64), ("shapes_large", 128)])
def test_backbones_end_in_fc(name, width):
    net = getattr(small_backbones, name)()
    assert net.fc.in_features == width and net.fc.out_features == len(RULES)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 8)


def test_pretraining_keeps_checkpoints_and_is_done_once(tmp_path, capsys):
    paint_shapes.main(paint_shapes.parser().settings(
        ["--root", str(tmp_path / "data"), "--train", "64", "--val", "16", "--workers", "1"]))

    def pretrain(out, *more):
        pretrain_backbones.main(pretrain_backbones.parser().settings(
            ["--root", str(tmp_path / "data"), "--models", "shapes_small", "--device", "cpu", "--epochs", "3",
             "--out", str(tmp_path / out), *more]))
        return capsys.readouterr().out

    pretrain("one"), pretrain("two")
    told = json.loads((tmp_path / "one" / "shapes_small.json").read_text())
    assert list(told["checkpoints"]) == [f"shapes_small_epoch{epoch}.pth" for epoch in (1, 2, 3)]
    states = [torch.load(tmp_path / out / "shapes_small.pth", weights_only=True) for out in ("one", "two")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])  # seeded
    net = small_backbones.shapes_small()
    net.load_state_dict(states[0])
    data = pretrain_backbones.load(folder_images(tmp_path / "data" / "val", "shapes", "val"), torch.device("cpu"))
    assert pretrain_backbones.accuracy(net, *data) == told["val_top1"]
    early = torch.load(tmp_path / "one" / "shapes_small_epoch1.pth", weights_only=True)
    assert not torch.equal(early["fc.weight"], states[0]["fc.weight"])

    again = pretrain("one")
    assert "done before" in again and "epoch" not in again
    with pytest.raises(UserError, match="seed"):
        pretrain("one", "--seed", "1")


def test_pretraining_refuses_unknown_models_and_missing_images(tmp_path):
    with pytest.raises(UserError, match="shapes_large"):
        pretrain_backbones.main(pretrain_backbones.parser().settings(["--models", "shapes_larg"]))
    refused = run_script("demo/pretrain_backbones.py", "--root", tmp_path)
    assert refused.returncode == 2 and "paint_shapes.py" in refused.stderr
