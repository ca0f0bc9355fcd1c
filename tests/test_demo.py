"""The built-in data set: class rules, painting, captions; the backbones and the tiny CLIP that are trained on it."""

import itertools
import json
import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import run_script

from demo import paint_shapes, pretrain_backbones, small_backbones, train_tiny_clip
from demo.shapes_world import ATTRIBUTES, RULES, TEXTURE_PHRASES, caption, concepts, paint, scene
from demo.tiny_clip import FILLERS, PHRASES, Texts, auroc, caption_words, pair_loss
from extractor import textual_emb_extractor
from extractor.clip import load_clip
from iis.cli import parse
from iis.datasets import folder_images
from iis.embedding_file import load_embeddings
from iis.preprocessing import preprocessing
from iis.runtime import UserError

SCENES = [scene(0, "train", index) for index in range(800)]


def run(script, *flags):
    script.main(parse(script.Settings, [str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    run(paint_shapes, "--root", folder / "shapes", "--train", 64, "--val", 24, "--workers", 1)
    return folder


def test_each_scene_obeys_its_rule_alone_and_classes_are_balanced():
    def obeyed(attributes):
        return [name for name, rule in RULES.items() if all(attributes[group] in rule[group] for group in rule)]

    for words in itertools.product(*ATTRIBUTES.values()):
        assert len(obeyed(dict(zip(ATTRIBUTES, words, strict=True)))) <= 1
    assert all(obeyed(of.attributes) == [of.class_name] for of in SCENES)
    assert {name: sum(of.class_name == name for of in SCENES) for name in RULES} == dict.fromkeys(RULES, 100)
    for group, value in ((group, value) for group, values in ATTRIBUTES.items() for value in values):
        assert len({of.class_name for of in SCENES if of.attributes[group] == value}) >= 2  # alone, it decides nothing


def test_an_image_follows_from_its_key_and_shows_its_attributes():
    keys = [(0, "train", 5), (1, "train", 5), (0, "val", 5), (0, "train", 13), (0, "train", 5)]
    first, *others, again = (paint(scene(*key)).tobytes() for key in keys)
    assert first == again not in others
    means = np.array([np.asarray(paint(of), dtype=float).mean((0, 1)) for of in SCENES[:240]])
    red_over_blue = means[:, 0] - means[:, 2]
    warm, light = (np.array([of.attributes[group] in words for of in SCENES[:240]]) for group, words in (
        ("colour", ("red", "orange", "yellow")), ("background_tone", ("light",))))
    assert red_over_blue[warm].mean() > red_over_blue[~warm].mean() + 10
    assert means[light].mean() > means[~light].mean() + 50


def test_captions_name_every_concept_and_vary():
    other_words = {word: phrase.removeprefix("with ") for word, phrase in TEXTURE_PHRASES.items()}
    for of in SCENES:
        sentence = caption(of)
        for word in concepts(of):
            assert re.search(rf"\b({word}|{other_words.get(word, word)})\b", sentence, re.IGNORECASE), (word, sentence)
        assert sentence[0].isupper() and sentence.endswith(".") and "{" not in sentence
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", sentence), sentence
    assert len({caption(of).split(of.attributes["shape"])[0] for of in SCENES}) > 100
    of = replace(SCENES[0], clutter=(("orange", "blob"), ("red", "cross"), ("blue", "line"), ("red", "cross")))
    assert "an orange blob, two red crosses and a blue line" in caption(of)


def test_painting_is_the_same_for_any_number_of_workers_and_resumes(painted, tmp_path):
    again = partial(run_script, "demo/paint_shapes.py", "--root", tmp_path, "--train", 64, "--val", 24)
    assert "painted 88 of 88" in again("--workers", 2).stdout
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 90
    assert all((tmp_path / file).read_bytes() == (painted / "shapes" / file).read_bytes() for file in files)
    next((tmp_path / "train").rglob("*.png")).unlink()
    assert "painted 1 of 88" in again().stdout and "in place" in again().stdout
    assert again("--seed", 1).returncode == 2
    written, images = json.loads((tmp_path / "captions.json").read_text()), folder_images(tmp_path / "val", "s", "val")
    assert images.class_names == sorted(RULES) == sorted(written["rules"])
    assert {f"val/{name}" for name in images.names} <= set(written["images"])


def test_pretraining_keeps_checkpoints_and_is_done_once(painted, capfd):
    def pretrain(out, *more):
        run(pretrain_backbones, "--root", painted / "shapes", "--models", "shapes_small,shapes_large", "--device",
            "cpu", "--epochs", 3, "--out", painted / out, *more)
        return capfd.readouterr().out

    pretrain("one"), pretrain("two", "--tiny_clip")
    assert json.loads((painted / "two/tiny_clip_auroc.json").read_text())["epochs"] == 3
    assert [getattr(small_backbones, name)().fc.in_features for name in pretrain_backbones.EPOCHS] == [32, 64, 128]
    small, large = (json.loads((painted / f"one/shapes_{size}.json").read_text()) for size in ("small", "large"))
    assert list(small["checkpoints"]) == [f"shapes_small_epoch{epoch}.pth" for epoch in (1, 2, 3)]
    assert (small["attributes"], large["attributes"]) == (False, True)  # the large one is taught more than classes
    first, again, early = (torch.load(painted / f"{file}.pth", weights_only=True) for file in (
        "one/shapes_small", "two/shapes_small", "one/shapes_small_epoch1"))
    assert all(torch.equal(first[key], again[key]) for key in first)  # seeded
    assert not torch.equal(first["fc.weight"], early["fc.weight"])
    net = small_backbones.shapes_small()
    net.load_state_dict(first)
    *val, names = pretrain_backbones.load(painted / "shapes", "val", torch.device("cpu"), preprocessing(64, 64))
    assert pretrain_backbones.accuracy(net, *val) == small["val_top1"]
    captions = json.loads((painted / "shapes/captions.json").read_text())["images"]
    colours_N = pretrain_backbones.attribute_targets(painted / "shapes", names)[:, 2].tolist()
    assert [ATTRIBUTES["colour"][place] for place in colours_N] == [captions[name]["concepts"][2] for name in names]
    assert pretrain("one").count("done before") == 2
    with pytest.raises(UserError, match="trained with epochs = 3, and this run has epochs = 4"):
        pretrain("one", "--epochs", 4)


def test_further_nets_of_a_backbone_have_their_seed_in_their_name(painted, capfd):
    pretrain = partial(run, pretrain_backbones, "--root", painted / "shapes", "--models", "shapes_small", "--device",
                       "cpu", "--epochs", 1, "--out", painted / "nets")
    pretrain(), pretrain("--nets", 3)
    assert capfd.readouterr().out.count("done before") == 1  # seed 0
    names = ["shapes_small", "shapes_small_seed1", "shapes_small_seed2"]
    assert [json.loads((painted / f"nets/{name}.json").read_text())["seed"] for name in names] == [0, 1, 2]
    first, second, third = (torch.load(painted / f"nets/{name}.pth", weights_only=True)["fc.weight"] for name in names)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_words_of_captions_are_concepts_of_the_scene_without_clutter():
    assert caption_words("A small red dotted star on a light flat background with two blue lines and a red blob.") == \
        ["small", "red", "dotted", "star", "light", "flat"]
    for of in SCENES:
        words = {{"stripes": "striped", "dots": "dotted", "checks": "checked"}.get(word, word)
                 for word in caption_words(caption(of))}
        # `without a pattern` leaves nothing of "plain"
        assert words <= set(concepts(of)) - FILLERS and set(concepts(of)) - words <= {"plain"}, caption(of)


def test_a_text_is_true_of_the_images_whose_caption_says_all_of_it():
    texts = Texts(["A red star on a flat background.", "A blue star on a flat background.", "A red square."])
    words, true_BT = texts.draw(torch.tensor([2, 0]), np.random.default_rng(0))
    assert words[:5] == ["blue", "flat", "red", "square", "star"] and len(words) == 5 + PHRASES
    assert true_BT[:, :5].tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 1]]
    said_B = [set(texts.captions[row]) for row in (2, 0)]
    assert true_BT.tolist() == [[float(set(text.split()) <= said) for text in words] for said in said_B]


def test_loss_and_auroc_by_hand():
    net = torch.nn.Module()
    net.logit_scale, net.logit_bias = torch.tensor(math.log(2)), torch.tensor(-1.0)
    image, texts = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [0, 1]])  # logits 1, true, and −1, false
    assert pair_loss(image, texts, image, net).item() == pytest.approx(math.log(1 + math.exp(-1)))
    # positives 3 and 1 against negatives 2 and 1: won 1 + 1, lost 1 (1 < 2), tied 1
    assert auroc(np.array([3.0, 1, 2, 1]), np.array([True, True, False, False])) == (2 + 0.5) / 4


def test_the_tiny_clip_is_seeded_done_once_and_a_clip_like_any_other(painted, capsys):
    train = partial(run, train_tiny_clip, "--root", painted / "shapes", "--device", "cpu", "--epochs", 1, "--out")
    train(painted / "clip"), train(painted / "again"), train(painted / "other", "--seed", 1)
    clip, again, other = (load_clip(str(painted / out / "tiny_clip.json")) for out in ("clip", "again", "other"))
    assert clip.weights_hash == again.weights_hash != other.weights_hash and clip.label == "tiny_clip"
    assert clip.preprocessing["crop"] == 64 and clip.encode_words(["red", "star"]).shape == (2, clip.width) == (2, 64)
    aurocs = json.loads((painted / "clip/tiny_clip_auroc.json").read_text())["words"]
    assert len(aurocs) == 22 and all(0 <= value <= 1 for value in aurocs.values())
    train(painted / "again")
    assert "done before" in capsys.readouterr().out
    with pytest.raises(UserError, match="trained with epochs = 1, and this run has epochs = 2"):
        train(painted / "again", "--epochs", 2)
    (painted / "toy.yaml").write_text(f"name: toy\nroot: {painted}/shapes\n")
    (painted / "words.txt").write_text("red\nstar\n")
    run(textual_emb_extractor, "--dataset", painted / "toy.yaml", "--concept_set", painted / "words.txt", "--backbone",
        "resnet20", "--weights", "none", "--device", "cpu", "-j", 0, "--clip_name", painted / "clip/tiny_clip.json",
        "--activation_dir", painted / "embs", "--save_root", painted / "root")
    files = [load_embeddings(painted / "embs" / f"{name}.pt") for name in ("toy_val_clip_tiny_clip", "words_tiny_clip")]
    assert [file.features_ND.shape for file in files] == [(24, 64), (2, 64)]


def test_refusals(tmp_path):
    for script, flags, sentence in (
            (paint_shapes, ["--train", 5000], "between 8 .* and 4000"), (train_tiny_clip, [], "demo/paint_shapes.py"),
            (pretrain_backbones, [], "demo/paint_shapes.py"), (pretrain_backbones, ["--models", "x"], "shapes_large")):
        with pytest.raises(UserError, match=sentence):
            run(script, "--root", tmp_path, *flags)
