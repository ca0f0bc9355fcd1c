"""The demo's CLIP: its texts and their truth, its loss by hand, AUROC, and the script from images to a loaded CLIP."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")

from demo import paint_shapes, train_tiny_clip  # noqa: E402
from demo.shapes_captions import TEMPLATES, caption, concepts  # noqa: E402
from demo.shapes_world import scene  # noqa: E402
from demo.tiny_clip import FILLERS, PHRASES, Texts, auroc, caption_words, pair_loss  # noqa: E402
from extractor.clip import load_clip  # noqa: E402
from iis.embedding_file import load_embeddings  # noqa: E402
from iis.names import clip_label  # noqa: E402
from iis.runtime import UserError  # noqa: E402


def test_words_of_a_caption_without_its_clutter():
    assert caption_words("A small red dotted star on a light flat background with two blue lines and a red blob.") == \
        ["small", "red", "dotted", "star", "light", "flat"]
    assert caption_words("A big star, red and with stripes beside an orange cross, on a dark graded background.") == \
        ["big", "star", "red", "stripes", "dark", "graded"]
    assert caption_words("This is a picture of a plain star, red and small near a blue blob; its background is flat "
                         "and dark.") == ["plain", "star", "red", "small", "flat", "dark"]


def test_words_of_every_template_are_concepts_of_the_scene():
    seen = 0
    for index in range(300):
        of = scene(0, "train", index)
        words = set(caption_words(caption(of)))
        said = {{"stripes": "striped", "dots": "dotted", "checks": "checked"}.get(word, word) for word in words}
        # `without a pattern` leaves nothing of "plain"
        assert said <= set(concepts(of)) and set(concepts(of)) - said <= {"plain"}, caption(of)
        seen += 1
    assert seen > 10 * len(TEMPLATES) and not FILLERS & said


def test_a_text_is_true_of_the_images_whose_caption_says_all_of_it():
    texts = Texts(["A red star on a flat background.", "A blue star on a flat background.", "A red square."])
    assert texts.words == ["blue", "flat", "red", "square", "star"]
    words, true_BT = texts.draw(torch.tensor([2, 0]), np.random.default_rng(0))
    assert words[:5] == texts.words and len(words) == 5 + PHRASES
    assert true_BT[:, :5].tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 1]]
    captions = [set(texts.captions[row]) for row in (2, 0)]
    expected = [[float(set(text.split()) <= said) for text in words] for said in captions]
    assert true_BT.tolist() == expected


def test_loss_by_hand():
    net = torch.nn.Module()
    net.logit_scale, net.logit_bias = torch.tensor(math.log(2)), torch.tensor(-1.0)
    images, texts = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [0, 1]])  # logits 2·1 − 1 and 2·0 − 1
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))) / 2  # first true, second false
    assert pair_loss(images, texts, torch.tensor([[1.0, 0]]), net).item() == pytest.approx(expected)


def test_auroc_by_hand():
    # positives 3 and 1 against negatives 2 and 1: won 1 + 1, lost 1 (1 < 2), tied 1
    assert auroc(np.array([3.0, 1, 2, 1]), np.array([True, True, False, False])) == (2 + 0.5) / 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """64 + 24 images, one epoch: the path, not the accuracy."""
    folder = tmp_path_factory.mktemp("tiny")
    paint_shapes.main(paint_shapes.parser().settings(["--root", str(folder / "shapes"), "--train", "64", "--val", "24",
                                                      "--workers", "1"]))
    run(folder, "out")
    return folder


def run(folder, out, *more):
    train_tiny_clip.main(train_tiny_clip.parser().settings(
        ["--root", str(folder / "shapes"), "--out", str(folder / out), "--epochs", "1", "--device", "cpu", *more]))


def test_the_checkpoint_is_a_clip_like_any_other(trained):
    config = trained / "out" / "tiny_clip.json"
    clip = load_clip(str(config))
    assert clip.label == clip_label(str(config)) == "tiny_clip"
    assert clip.width == 64 and clip.preprocessing["crop"] == 64 and clip.architecture == "tiny_clip"
    assert clip.encode_words(["red", "star"]).shape == (2, 64)
    report = json.loads((trained / "out" / "tiny_clip_auroc.json").read_text())
    assert len(report["words"]) == 22 and all(0 <= value <= 1 for value in report["words"].values())


def test_same_seed_same_weights_and_another_seed_others(trained, capsys):
    run(trained, "again")
    run(trained, "other", "--seed", "1")
    first, again, other = (load_clip(str(trained / name / "tiny_clip.pt")).weights_hash
                           for name in ("out", "again", "other"))
    assert first == again != other
    capsys.readouterr()
    run(trained, "again")
    assert "done before" in capsys.readouterr().out
    with pytest.raises(UserError, match="trained with epochs = 1, and this run has epochs = 2"):
        run(trained, "again", "--epochs", "2")


def test_without_images(tmp_path):
    with pytest.raises(UserError, match="run python demo/paint_shapes.py first"):
        run(tmp_path, "out")


def test_through_the_textual_script(trained):
    from extractor.textual_emb_extractor import Settings, main
    from iis.cli import parse

    (trained / "toy.yaml").write_text(f"name: toy\nroot: {trained}/shapes\n")
    (trained / "words.txt").write_text("red\nstar\n")
    main(parse(Settings, ["--dataset", str(trained / "toy.yaml"), "--concept_set", str(trained / "words.txt"),
                          "--backbone", "resnet20", "--weights", "none", "--device", "cpu", "-j", "0", "--clip_name",
                          str(trained / "out" / "tiny_clip.json"), "--activation_dir", str(trained / "embs"),
                          "--save_root", str(trained / "root")]))
    images = load_embeddings(trained / "embs" / "toy_val_clip_tiny_clip.pt")
    words = load_embeddings(trained / "embs" / "words_tiny_clip.pt")
    assert images.features_ND.shape == (24, 64) and words.features_ND.shape == (2, 64)
