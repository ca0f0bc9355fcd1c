"""The 4 x 4 grid by hand."""

import numpy as np
import pytest
from PIL import Image

from extractor.patches import patches


def test_sixteen_boxes_row_by_row_without_the_remainder():
    # 11 x 9: boxes of 2 x 2, so columns 8, 9, 10 and row 8 are dropped. Each box has one colour of its own.
    array = np.full((9, 11, 3), 255, np.uint8)
    for row in range(4):
        for column in range(4):
            array[2 * row:2 * row + 2, 2 * column:2 * column + 2] = (10 * row, 10 * column, 7)
    found = patches(Image.fromarray(array), "x")
    assert [tag for tag, _ in found] == [f"{row}_{column}" for row in range(4) for column in range(4)]
    for tag, element in found:
        row, column = map(int, tag.split("_"))
        # One colour exactly: nothing of the neighbours bleeds in.
        assert element.size == (224, 224) and element.getcolors() == [(224 * 224, (10 * row, 10 * column, 7))]


def test_bicubic():
    array = np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    element = dict(patches(Image.fromarray(array), "x"))["2_3"]
    by_hand = Image.fromarray(array[16:24, 30:40]).resize((224, 224), Image.Resampling.BICUBIC)
    assert element.tobytes() == by_hand.tobytes()


@pytest.mark.parametrize("size, count", [((3, 90), 0), ((90, 3), 0), ((1, 1), 0), ((4, 4), 16)])
def test_images_under_four_pixels_have_none(size, count):
    assert len(patches(Image.new("RGB", size), "x")) == count
