"""Data sets: folders as torchvision reads them, YAMLs, names for people, images of every mode; and where files go."""

from pathlib import Path

import numpy as np
import pytest
from painted import paint
from PIL import Image
from torchvision.datasets import ImageFolder

from iis import datasets
from iis.datasets import UnreadableImage, folder_images, load_dataset, readable_class_names, same_classes
from iis.names import elements_file, elements_folder, model_label
from iis.runtime import UserError


def test_order_is_imagefolders(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/x.PNG", "a/deep/y.jpg", "c/z.webp"):
        paint(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    ours, theirs = folder_images(tmp_path, "toy", "train"), ImageFolder(str(tmp_path))
    assert ours.class_names == theirs.classes
    assert sorted(zip(ours.names, ours.labels, strict=True)) == sorted(
        (file[len(str(tmp_path)) + 1:], label) for file, label in theirs.samples)
    assert ours.names == ["a/deep/y.jpg", "a/x.PNG", "b/10.png", "b/2.png", "c/z.webp"]
    some = ours.only([4, 0])
    assert (some.names, some.labels, len(some)) == (["c/z.webp", "a/deep/y.jpg"], [2, 0], 2)
    assert np.array_equal(np.asarray(some.open(1)), np.asarray(theirs[[f for f, _ in theirs.samples].index(
        str(tmp_path / "a/deep/y.jpg"))][0]))


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png")])
def test_every_mode_opens_as_rgb_and_a_damaged_image_is_named(tmp_path, mode, suffix):
    paint(tmp_path / "a" / f"x.{suffix}", mode=mode)
    (tmp_path / "a" / "y.png").write_bytes((tmp_path / "a" / f"x.{suffix}").read_bytes()[:60])
    images = folder_images(tmp_path, "toy", "train")
    assert images.open(0).mode == "RGB" and images.open(0).size == (12, 10)
    with pytest.raises(UnreadableImage, match="y.png"):
        images.open(1)


def test_what_is_wrong_with_a_folder_is_one_sentence(tmp_path):
    paint(tmp_path / "flat" / "x.png")
    paint(tmp_path / "empty" / "a" / "x.png")
    (tmp_path / "empty" / "b").mkdir()
    flat = r"images but no class folders \(x.png, …\): sort the images into one folder per class"
    for name, sentence in {"none": "no folder", "flat": flat, "empty/b": "no class folders",
                           "empty": "b holds no images"}.items():
        with pytest.raises(UserError, match=sentence):
            folder_images(tmp_path / name, "toy", "val")
    with pytest.raises(UserError, match=r"only in train \['b'\], only in val \['c'\]"):
        same_classes(["a", "b"], ["a", "c"])
    with pytest.raises(UserError, match="shapes"):
        load_dataset("shapse")


def test_a_yaml_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ROOT", tmp_path)
    file = tmp_path / "birds.yaml"
    file.write_text("val: test\nnum_concepts: 50")
    birds = load_dataset(str(file))
    assert (birds.name, birds.root.parts[-2:], birds.train, birds.val, birds.num_concepts, birds.torchvision) == (
        "birds", ("datasets", "birds"), "train", "test", 50, None)
    with pytest.raises(UserError, match="birds has no val folder at .*birds/test.*dataset_configs/birds.yaml.*shapes"):
        birds.images("val")
    for text, sentence in (("vall: x", "birds.yaml has the unknown key 'vall'; did you mean val"),
                           ("torchvision: CIFAR11", "CIFAR11.*CIFAR10")):
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            load_dataset(str(file))
    paint(tmp_path / "datasets" / "bare" / "val" / "a" / "x.png")  # needs no YAML
    assert load_dataset("bare").images("val").names == ["a/x.png"]


def test_a_torchvision_set_is_ordered_class_by_class(tmp_path, monkeypatch):
    class Set(list):
        classes, _labels = ["cat", "dog"], np.array([1, 0, 1, 0])

        def __init__(self, root, download, split):
            super().__init__((Image.new("L", (4, 4), 10 * number), None) for number in range(4))
            assert (root, download, split) == (str(tmp_path), True, "trainval")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", Set)
    images = datasets.Dataset("pets", tmp_path, torchvision="OxfordIIITPet").images("train")
    assert images.names == ["cat/000001", "cat/000003", "dog/000000", "dog/000002"] and images.labels == [0, 0, 1, 1]
    assert [images.only([1, 2]).open(row).getpixel((0, 0))[0] for row in (0, 1)] == [30, 0]
    images.source.clear()
    with pytest.raises(UnreadableImage, match="cat/000001"):
        images.open(0)


def test_names_for_people(tmp_path, monkeypatch):
    synsets = ["n01440764", "n03888257"]
    for dataset in ("imagenet", "nowhere", "cub"):  # any data set whose folders are synsets
        assert readable_class_names(dataset, synsets) == ["tench", "parachute"]
        assert readable_class_names(dataset, [*synsets, "n99999999"]) == ["tench", "parachute", "n99999999"]
        for other in ("n0144076", "narwhal12", "tench", "x01440764"):
            assert readable_class_names(dataset, [*synsets, other]) == [*synsets, other]
    (tmp_path / "words.txt").write_text("a warm\u2028square\ncircle\n", encoding="utf-8")
    toy = datasets.Dataset("toy", tmp_path, class_names="words.txt")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: toy)
    monkeypatch.setattr(datasets, "ROOT", tmp_path)
    assert readable_class_names("toy", synsets) == ["a warm\u2028square", "circle"]
    with pytest.raises(UserError, match="words.txt has 2 lines for 1 classes"):
        readable_class_names("toy", ["x"])


def test_where_files_go():
    """The published case keeps the published names; whatever differs from it has a name of its own."""
    cases = [(dataset, kind, protocol) for dataset in ("imagenet", "toy") for kind in ("segments", "patches")
             for protocol in ("paper", "release")]
    files, folders = ([place(*model, *case, root=Path("r")).as_posix() for case in cases]
                      for place, model in ((elements_file, ["net"]), (elements_folder, [])))
    assert files == [f"r/net/{prefix}visual_element_emb.pkl" for prefix in (
        "", "release_", "patches_", "patches_release_", "toy_segments_", "toy_segments_release_", "toy_patches_",
        "toy_patches_release_")]
    assert folders == [f"r/{part}" for part in (
        "segments", "segments_release", "patches", "patches_release", "toy/segments", "toy/segments_release",
        "toy/patches", "toy/patches_release")]
    assert [model_label(*names) for names in (
        ("resnet50", "V1", "V1"), ("resnet50", "V2", "V1"), ("timm:vit.a1", "none (seed 0)"),
        ("my/net.py:f", "as built", "as built"), ("resnet20", "/x/best one.pth"))] == [
        "resnet50", "resnet50__V2", "timm_vit.a1__none-seed-0", "net_f", "resnet20__best-one"]
