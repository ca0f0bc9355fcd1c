"""SLIC over one conversion and blur: label for label as scikit-image, and scikit-image itself where in doubt."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.segmentation import slic_superpixels

from extractor import shared_slic
from extractor.shared_slic import labels, public, shared, trusted

RULES = ((10, 20, 30), 10, 1)


@pytest.fixture(autouse=True)
def asked_anew():
    trusted.cache_clear()
    yield
    trusted.cache_clear()


def image(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def assert_alike(one, other):
    assert [a.dtype for a in one] == [b.dtype for b in other] == [np.int64] * 3
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (33, 32), (90, 61), (120, 160)])
def test_label_for_label_as_scikit_image(size):
    assert trusted()
    flat = np.full((*size, 3), 77, np.uint8)
    halves = flat.copy()
    halves[: size[0] // 2] = (10, 200, 30)
    for array in (image(*size), flat, halves, image(*size) // 8 + 40):
        assert_alike(shared(array, *RULES), public(array, *RULES))


def test_other_rules_than_ours():
    array = image(60, 80)
    for rules in (((4, 15, 50), 3, 2), ((10, 11, 12), 25.0, 0.5)):
        assert_alike(shared(array, *rules), public(array, *rules))


@pytest.mark.skipif("IIS_DATA" not in os.environ, reason="IIS_DATA does not name the folder with imagenet-pictures")
def test_real_images():
    for file in sorted(Path(os.environ["IIS_DATA"], "imagenet-pictures").glob("*/*"))[::14]:
        array = np.asarray(Image.open(file).convert("RGB"))
        assert_alike(shared(array, *RULES), public(array, *RULES))


@pytest.mark.parametrize("change", ["raises", "one label differs", "another type"])
def test_scikit_image_itself_where_the_parts_do_not_give_the_same(monkeypatch, change):
    array = image(60, 80)
    expected = public(array, *RULES)

    def changed(array, *rules):
        if change == "raises":
            raise TypeError("_slic_cython() got an unexpected keyword argument")
        found = [labels_HW.copy() for labels_HW in shared(array, *rules)]
        if change == "one label differs":
            found[-1][-1, -1] += 1
        return [labels_HW.astype(np.int32) if change == "another type" else labels_HW for labels_HW in found]

    monkeypatch.setattr(shared_slic, "shared", changed)
    assert not trusted()
    assert_alike(labels(array, *RULES), expected)


def test_a_missing_part_is_not_trusted(monkeypatch):
    monkeypatch.delattr(slic_superpixels, "_enforce_label_connectivity_cython")
    assert not trusted()


def test_the_benchmark_at_toy_size(tmp_path):
    from bench import segments

    out = segments.main(segments.parser().settings(["--pairs", "1", "--width", "60", "--height", "45", "--out",
                                                    str(tmp_path / "x.json")]))
    written = json.loads(out.read_text())
    assert written["results"][segments.WHOLE]["must"] == 1.5 and "every pixel alike" in written["note"]
    assert "NOT" not in written["note"]
