"""Names of CLIP's files: the published ones, and what tells other weights apart."""

from pathlib import Path

import pytest

from iis.names import clip_images_file, clip_label, clip_words_file


@pytest.mark.parametrize(("name", "weights", "label"), [
    ("ViT-B/16", None, "ViT-B16"), ("ViT-B/16", "openai", "ViT-B16"), ("ViT-B/16", "/x/ViT-B-16.pt", "ViT-B16"),
    ("ViT-B-16:openai", None, "ViT-B-16"), ("ViT-B/16", "/x/mine.pt", "ViT-B16__mine"),
    ("ViT-B-32:laion2b_s34b_b79k", None, "ViT-B-32_laion2b_s34b_b79k"),
    ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32_laion2b_s34b_b79k"),
    ("demo/weights/tiny_clip.json", None, "tiny_clip"), ("tiny_clip.json", "tiny_clip.pt", "tiny_clip")])
def test_label(name, weights, label):
    assert clip_label(name, weights) == label


def test_published_names():
    folder = Path("embs/resnet50")
    assert clip_images_file(folder, "imagenet", "val", "ViT-B16").name == "imagenet_val_clip_ViT-B16.pt"
    words = clip_words_file(folder, Path("../concept_library/textual/imagenet_filtered.txt"), "ViT-B16")
    assert words == folder / "imagenet_filtered_ViT-B16.pt"
