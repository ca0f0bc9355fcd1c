"""Data sets: folders, flat folders, empty classes, names for people, images of every mode."""

import pytest
from PIL import Image

from iis.datasets import UnreadableImage, folder_images, is_synset, load_dataset, readable_class_names, same_classes
from iis.runtime import UserError


def paint(file, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), 200 if mode in ("L", "P") else None).save(file)


def test_order_is_imagefolders(tmp_path):
    from torchvision.datasets import ImageFolder

    for name in ("b/2.png", "b/10.png", "a/x.PNG", "a/deep/y.jpg", "c/z.webp"):
        paint(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    ours, theirs = folder_images(tmp_path, "toy", "train"), ImageFolder(str(tmp_path))
    assert ours.class_names == theirs.classes
    assert sorted(zip(ours.names, ours.labels, strict=True)) == sorted(
        (file[len(str(tmp_path)) + 1:], label) for file, label in theirs.samples)
    assert ours.names == ["a/deep/y.jpg", "a/x.PNG", "b/10.png", "b/2.png", "c/z.webp"]


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png")])
def test_every_mode_opens_as_rgb(tmp_path, mode, suffix):
    paint(tmp_path / "a" / f"x.{suffix}", mode)
    image = folder_images(tmp_path, "toy", "train").open(0)
    assert image.mode == "RGB" and image.size == (6, 4)


def test_an_unreadable_image_is_told_by_name(tmp_path):
    paint(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "y.png").write_bytes((tmp_path / "a" / "x.png").read_bytes()[:30])
    with pytest.raises(UnreadableImage, match="y.png"):
        folder_images(tmp_path, "toy", "train").open(1)


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        folder_images(tmp_path / "none", "toy", "val")
    paint(tmp_path / "flat" / "x.png")
    with pytest.raises(UserError, match="one folder per class"):
        folder_images(tmp_path / "flat", "toy", "val")
    paint(tmp_path / "empty" / "a" / "x.png")
    (tmp_path / "empty" / "b").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        folder_images(tmp_path / "empty", "toy", "val")
    with pytest.raises(UserError, match="only in val"):
        same_classes(["a", "b"], ["a", "c"])
    with pytest.raises(UserError, match="shapes"):
        load_dataset("shapse")


def test_names_for_people():
    assert is_synset("n01440764") and not is_synset("n0144076") and not is_synset("narwhal12")
    assert readable_class_names("imagenet", ["n01440764", "n03888257"]) == ["tench", "parachute"]
    assert readable_class_names("shapes", ["warm_square"]) == ["warm_square"]
    assert readable_class_names("nowhere", ["a"]) == ["a"]
