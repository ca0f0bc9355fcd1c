"""Segments against a plain loop over whole-image masks, patches against the grid, and each rule by hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.segmentation import slic

from extractor.elements import AT_MOST, cut_out, passing_labels, patches, segments
from iis.runtime import numpy_rng


def plain_segments(image, name, choice, box, seed):
    """The rules as they read: one float mask per label, Jaccard by sums, grey composed on the whole image."""
    array = np.asarray(image)
    earlier, found = [], []
    for scale in (10, 20, 30):
        labels = slic(array, n_segments=scale, compactness=10, sigma=1, start_label=1)
        last = labels.max() if choice == "sample" else labels.max() - 1
        passing = []
        for label in range(1, last + 1):
            mask = labels == label
            if mask.mean() > 0.001 and all((mask & seen).sum() / (mask | seen).sum() <= 0.5 for seen in earlier):
                passing.append((label, mask))
        if choice == "first":
            passing = passing[:5]
        elif len(passing) > 5:
            drawn = numpy_rng(seed, name, scale).choice(len(passing), 5, replace=False)
            passing = [passing[i] for i in sorted(drawn)]
        earlier += [mask for _, mask in passing]
        for label, mask in passing:
            rows, columns = np.where(mask)
            end = 1 if box == "whole" else 0
            on_grey = np.where(mask[:, :, None], array, 117).astype(np.uint8)
            cut = on_grey[rows.min():rows.max() + end, columns.min():columns.max() + end]
            if cut.size:
                resized = Image.fromarray(cut).resize((array.shape[1], array.shape[0]), Image.Resampling.BICUBIC)
                found.append((f"{scale}_{label:03d}", resized))
    return found


def blobs(width, height, seed):
    """A smooth random image, so that SLIC has edges to follow."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(elements):
    return [(tag, element.size, element.tobytes()) for tag, element in elements]


@pytest.mark.parametrize("choice, box", [("sample", "whole"), ("first", "short"), ("first", "whole")])
@pytest.mark.parametrize("size", [(90, 60), (32, 32), (40, 110)])
def test_pixel_for_pixel_as_the_plain_loop(choice, box, size):
    image = blobs(*size, seed=size[0])
    found = segments(image, "a/b.jpg", choice, box, seed=3)
    assert 5 <= len(found) <= AT_MOST["segments"] and all(element.size == size for _, element in found)
    assert pixels(found) == pixels(plain_segments(image, "a/b.jpg", choice, box, 3))


@pytest.mark.skipif("IIS_DATA" not in os.environ, reason="IIS_DATA does not name the folder with imagenet-pictures")
def test_a_real_image_pixel_for_pixel():
    file = sorted(Path(os.environ["IIS_DATA"], "imagenet-pictures").glob("*/*"))[3]
    image = Image.open(file).convert("RGB")
    for choice, box in (("sample", "whole"), ("first", "short")):
        assert pixels(segments(image, file.name, choice, box)) == pixels(
            plain_segments(image, file.name, choice, box, 0))


def test_a_label_must_cover_more_than_a_thousandth():
    labels = np.full((20, 100), 3)  # 2000 pixels
    labels[0, :2] = 1  # exactly 0.1 %: out
    labels[1, :3] = 2
    assert passing_labels(labels, []).tolist() == [2, 3]


def test_jaccard_of_exactly_half_passes_and_only_kept_masks_count():
    earlier = np.array([[1] * 8 + [2] * 8])
    # label 1 is half of the earlier 1: 4/8. Label 2: 4 of earlier 1, 1 of earlier 2. Label 3: 7/8 of earlier 2.
    labels = np.array([[1] * 4 + [2] * 5 + [3] * 7])
    for kept, passing in (([1, 2], [1, 2]), ([1], [1, 2, 3]), ([], [1, 2, 3])):
        assert passing_labels(labels, [(earlier, np.array(kept, dtype=int))]).tolist() == passing
    # Every earlier scale counts, not only the last: the coarser one rules out label 1, the other label 3.
    coarser = np.array([[1] * 4 + [2] * 12])
    assert passing_labels(labels, [(coarser, np.array([1])), (earlier, np.array([2]))]).tolist() == [2]


def test_release_drops_the_last_row_and_column_of_the_box():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    labels = np.array([[1, 1, 1, 2, 2], [1, 2, 2, 2, 2], [1, 2, 2, 2, 2], [3, 3, 3, 3, 3]])
    kept = np.array([1, 3])
    (label, whole), (_, row) = cut_out(image, labels, kept, short=False)
    assert label == 1 and whole.shape == (3, 3, 3) and row.shape == (1, 5, 3)
    assert (whole[1, 0] == image[1, 0]).all() and (whole[1:, 1:] == 117).all()
    # Label 3 is one row high: of the short box nothing is left.
    [(label, short)] = cut_out(image, labels, kept, short=True)
    assert label == 1 and (short == whole[:2, :2]).all()


def test_release_never_takes_the_last_label():
    tags = [tag for tag, _ in segments(blobs(2, 2, 0), "x", "first", "whole")]  # SLIC gives these four labels
    assert tags[:3] == ["10_001", "10_002", "10_003"] and "10_004" not in tags


def test_the_sample_depends_on_seed_and_name_alone():
    image = blobs(90, 60, seed=1)
    tags = {key: [tag for tag, _ in segments(image, key[0], seed=key[1])] for key in (("x", 0), ("x", 1), ("y", 0))}
    assert tags["x", 0] == [tag for tag, _ in segments(image, "x", seed=0)]
    assert tags["x", 0] != tags["x", 1] and tags["x", 0] != tags["y", 0]
    assert max(sum(tag.startswith(scale) for tag in tags["x", 0]) for scale in ("10_", "20_", "30_")) == 5


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (40, 1), (64, 48)])
@pytest.mark.parametrize("choice, box", [("sample", "whole"), ("first", "short")])
def test_tiny_and_constant_images_do_not_crash(size, choice, box):
    for image in (Image.new("RGB", size, (9, 9, 9)), blobs(*size, seed=0)):
        found = segments(image, "x", choice, box)
        assert all(element.size == size for _, element in found)
        if box == "short" and 1 in size:
            assert found == []
        if size == (1, 1) and box == "whole":
            assert [tag for tag, _ in found] == ["10_001"] and found[0][1].tobytes() == image.tobytes()


def test_sixteen_patches_row_by_row_without_the_remainder():
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


def test_patches_are_bicubic_and_images_under_four_pixels_have_none():
    array = np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    element = dict(patches(Image.fromarray(array), "x"))["2_3"]
    by_hand = Image.fromarray(array[16:24, 30:40]).resize((224, 224), Image.Resampling.BICUBIC)
    assert element.tobytes() == by_hand.tobytes()
    counts = [len(patches(Image.new("RGB", size), "x")) for size in ((3, 90), (90, 3), (1, 1), (4, 4))]
    assert counts == [0, 0, 0, AT_MOST["patches"]]
