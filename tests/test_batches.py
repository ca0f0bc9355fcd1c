"""Batches always hold the same images, whatever the number of workers; unreadable ones are reported."""

import numpy as np
import pytest
import torch
from PIL import Image

from extractor.batches import batches
from iis.datasets import folder_images
from iis.preprocessing import preprocessing


@pytest.fixture
def images(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(7):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "3.png").write_bytes(b"not an image")
    return folder_images(tmp_path, "toy", "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_same_batches_for_any_number_of_workers(images, workers):
    rows = [range(0, 3), range(3, 4), range(4, 7)]
    found = list(batches(images, preprocessing(8, 8), rows, workers, torch.device("cpu")))
    assert [batch.rows for batch in found] == [[0, 1, 2], [], [4, 5, 6]]
    assert [batch.images[:, 0, 0, 0].tolist() for batch in found] == [[0, 10, 20], [], [40, 50, 60]]
    assert all(batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 8, 8) for batch in found)
    assert list(found[1].unreadable) == [3] and "3.png" in found[1].unreadable[3]


def test_one_decode_serves_all_and_equal_geometry_shares_the_pixels(images, monkeypatch):
    opened = []
    whole = type(images).open
    monkeypatch.setattr(type(images), "open", lambda self, row: opened.append(row) or whole(self, row))
    others = [preprocessing(8, 8, mean=(0, 0, 0)), preprocessing(8, 4)]
    (found,) = batches(images, preprocessing(8, 8), [range(0, 4)], 0, torch.device("cpu"), others)
    assert opened == [0, 1, 2, 3] and found.rows == [0, 1, 2]
    assert found.others[0] is found.images
    assert found.others[1].shape == (3, 3, 4, 4) and found.others[1][:, 0, 0, 0].tolist() == [0, 10, 20]


def test_threads_are_given_back(images):
    before = torch.get_num_threads()
    stream = batches(images, preprocessing(8, 8), [range(0, 3), range(4, 7)], 1, torch.device("cpu"))
    next(stream)
    assert torch.get_num_threads() <= before
    stream.close()
    assert torch.get_num_threads() == before


def test_nothing_to_read_is_no_error(images):
    assert list(batches(images, preprocessing(8, 8), [], 4, torch.device("cpu"))) == []
