"""Images decoded on the device: near PIL's, never mixed with them, and odd files through PIL."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from extractor import device_decoding as room
from extractor.batches import batches
from extractor.embed import embed_together
from extractor.targets import Target
from iis.backbones import load_backbone
from iis.datasets import folder_images
from iis.embedding_file import load_embeddings
from iis.layers import HEAD_INPUT, Node
from iis.preprocessing import preprocessing
from iis.runtime import UserError

CPU = torch.device("cpu")
PIL, GPU = preprocessing(64, 56), {**preprocessing(64, 56), "decoder": "gpu"}
NAMES = ("a_rgb.jpg", "b_grey.jpg", "c_exif.jpg", "d_cmyk.jpg", "e_png.jpg", "f_cut.jpg", "g_text.jpg", "h_tail.jpg",
         "i_alpha.png")


def smooth(width=120, height=90):
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    waves = 127 + 120 * np.sin(across / 20) * np.cos(down / 30)
    return Image.fromarray(np.stack([across, waves, down], -1).astype(np.uint8))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    image = smooth()
    image.save(folder / NAMES[0], quality=92)
    image.convert("L").save(folder / NAMES[1], quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by a quarter
    image.save(folder / NAMES[2], quality=92, exif=turned)
    image.convert("CMYK").save(folder / NAMES[3], quality=92)
    image.save(folder / NAMES[4], format="PNG")
    whole = (folder / NAMES[0]).read_bytes()
    (folder / NAMES[5]).write_bytes(whole[:len(whole) // 2])
    (folder / NAMES[6]).write_text("no image")
    (folder / NAMES[7]).write_bytes(whole + b"camera maker's appendix")
    image.convert("RGBA").save(folder / NAMES[8])
    return folder_images(tmp_path / "in", "toy", "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_close_to_pil_and_the_same_files_are_unreadable(images, workers):
    rows = [range(0, 5), range(5, 9)]
    expected, found = (list(batches(images, settings, rows, workers, CPU)) for settings in (PIL, GPU))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.rows == theirs.rows and ours.unreadable == theirs.unreadable
        assert ours.images.shape == theirs.images.shape and ours.images.dtype == torch.uint8
        off = (ours.images.int() - theirs.images.int()).abs()
        assert off.max() <= 3 and off.float().mean() <= 0.3  # of 255
    assert sorted(found[0].unreadable | found[1].unreadable) == [5, 6]


@pytest.mark.parametrize(("name", "encoded"), list(zip(NAMES, [1, 1, 1, 0, 0, None, None, 0, 0], strict=True)))
def test_only_plain_and_whole_jpeg_files_are_left_to_the_device(images, name, encoded):
    row = NAMES.index(name)
    if encoded is None:
        with pytest.raises(room.UnreadableImage, match=name):
            room.read_encoded(images, row)
    else:
        assert room.read_encoded(images, row).ndim == (1 if encoded else 3)


def test_what_the_device_cannot_decode_goes_through_pil(images, monkeypatch):
    whole, calls = room.decode_jpeg, []

    def picky(files, *more, **options):
        calls.append(isinstance(files, list))
        if isinstance(files, list) or len(calls) == 2:  # all at once, then the first alone
            raise RuntimeError("unsupported")
        return whole(files, *more, **options)

    monkeypatch.setattr(room, "decode_jpeg", picky)
    (found,) = batches(images, GPU, [range(0, 3)], 0, CPU)
    (expected,) = batches(images, PIL, [range(0, 3)], 0, CPU)
    assert calls == [True, False, False, False] and found.rows == [0, 1, 2]
    assert (found.images.int() - expected.images.int()).abs().max() <= 3


def test_a_file_that_neither_reads_is_unreadable(images, monkeypatch):
    broken = (images.root / images.names[0]).read_bytes()
    middle = len(broken) // 3
    (images.root / images.names[0]).write_bytes(broken[:middle] + b"\xff\xd9")  # ends as a whole one does
    assert room.read_encoded(images, 0).ndim == 1
    monkeypatch.setattr(room, "decode_jpeg", lambda *_, **__: (_ for _ in ()).throw(RuntimeError()))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    (found,) = batches(images, GPU, [range(0, 1)], 0, CPU)
    assert found.rows == [] and list(found.unreadable) == [0] and found.images.shape == (0, 3, 56, 56)


def test_torchvisions_sets_are_decoded_by_themselves(images):
    class Set(type(images)):
        def file(self, index):
            return None

    plain = Set(*(getattr(images, name) for name in ("dataset", "split", "class_names", "labels", "names", "root")))
    assert room.read_encoded(plain, 0).shape == (3, 90, 120)


def test_a_resampler_that_tensors_lack(images):
    with pytest.raises(UserError, match="cannot resize by lanczos.*bicubic"):
        next(batches(images, {**GPU, "interpolation": "lanczos"}, [range(1)], 0, CPU))


def test_files_of_two_decoders_are_made_apart_and_differ_in_provenance(images, tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(5, 2))\n")
    targets = []
    for name, settings in (("pil", PIL), ("gpu", GPU)):
        backbone = load_backbone(f"{tmp_path}/net.py:net", "none")
        backbone.preprocessing = settings
        targets.append(Target(backbone, Node(HEAD_INPUT, backbone.head), tmp_path / f"{name}.pt",
                              {"model": "net", "preprocessing": settings}))
    embed_together(images, targets, 4, 0, CPU)
    first, second = (load_embeddings(target.file) for target in targets)
    scale = first.features_ND.abs().max()
    assert 0 < (first.features_ND - second.features_ND).abs().max() <= 0.01 * scale
    with pytest.raises(UserError, match="differs in preprocessing .*decoder"):
        embed_together(images, [Target(targets[0].model, targets[0].node, targets[1].file,
                                         targets[0].provenance)], 4, 0, CPU)


def test_the_flag_is_part_of_the_folder_and_of_preprocessing():
    from extractor.backbone_flags import backbone_of, backbone_parser
    from extractor.jobs import folder_name

    flags = ["--model", "resnet20", "--weights", "none", "--device", "cpu", "--decoder"]
    folders = []
    for decoder in ("pil", "gpu"):
        backbone, _ = backbone_of(backbone_parser("x").settings([*flags, decoder]))
        folders.append(folder_name("resnet20", backbone))
        assert backbone.preprocessing.get("decoder") == (None if decoder == "pil" else "gpu")
    assert folders[1] == folders[0] + "__gpu-decoded"


def test_bytes_and_pixels_travel_in_one_tensor(images):
    from extractor.batches import _Prepared

    batch = _Prepared(images, [GPU], [range(3, 5)])[0]
    assert batch.content.ndim == 1 and batch.shapes == [torch.Size([3, 90, 120])] * 2
    image = Image.open(io.BytesIO((images.root / images.names[4]).read_bytes()))
    assert (batch.content[-3 * 90 * 120:].view(3, 90, 120).permute(1, 2, 0).numpy() == np.asarray(image)).all()
