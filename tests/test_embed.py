"""Embedding: every row in its place, killed and resumed bit for bit, ranks, and what is refused."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from extractor import embed as room
from extractor.embed import embed, embed_together, is_done
from extractor.embed import Target
from iis.backbones import load_backbone
from iis.datasets import folder_images
from iis.embedding_file import load_embeddings
from iis.layers import HEAD_INPUT, Node
from iis.preprocessing import normalise, preprocessing, to_uint8
from iis.runtime import ROOT, UserError

CPU = torch.device("cpu")
OWN = '''
import os, time
from torch import nn

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return x

def net():
    model = nn.Sequential(Slow(), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    model.preprocessing = {"resize": 12, "crop": 12}
    return model
'''


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("cat", 30), ("dog", 40)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (15, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{number:02d}.png")
    (tmp_path / "net.py").write_text(OWN)
    return tmp_path


def run(place, name="x.pkl", batch_size=2, workers=0, **changes):
    backbone = load_backbone(f"{place}/net.py:net", "none")
    for key, value in changes.items():
        setattr(backbone, key, value)
    images = folder_images(place / "in", "toy", "train")
    provenance = {"model": backbone.model, "weights_hash": backbone.weights_hash, "node": HEAD_INPUT}
    return embed(images, backbone, Node(HEAD_INPUT, backbone.head), place / "out" / name, provenance, batch_size,
                 workers, CPU)


def test_every_row_is_the_feature_of_its_own_image(place, capsys):
    (place / "in" / "cat" / "07.png").write_bytes(b"broken")
    found = load_embeddings(run(place, workers=2))
    said = capsys.readouterr().out
    assert "1 of 70 images could not be read" in said and "07.png" in said
    assert "x.pkl: 69 x 5," in said and "images/s, cpu" in said
    assert found.image_paths == [f"cat/{n:02d}.png" for n in range(30) if n != 7] + [f"dog/{n:02d}.png"
                                                                                    for n in range(40)]
    assert found.labels_N.tolist() == [0] * 29 + [1] * 40
    assert found.record["unreadable"] == ["cat/07.png"]
    backbone = load_backbone(f"{place}/net.py:net", "none")
    for row in (0, 7, 68):
        image = Image.open(place / "in" / found.image_paths[row]).convert("RGB")
        x = normalise(to_uint8(image, backbone.preprocessing)[None], backbone.preprocessing)
        expected = backbone.module[1](x).relu().mean((2, 3))
        assert torch.allclose(found.features_ND[row], expected[0], atol=1e-6)
    assert not (place / "out" / "x.pkl.partial").exists()


def test_killed_at_any_moment_and_started_again_gives_the_same_bits(place):
    whole = load_embeddings(run(place, "whole.pkl", workers=1))
    script = [sys.executable, str(ROOT / "extractor" / "visual_element_emb_extractor.py"), "--model",
            f"{place}/net.py:net", "--weights", "none", "--data-path", str(place / "in"), "--save_root", str(place),
            "--model_name", "out", "-b", "2", "-j", "1", "--device", "cpu"]
    file, partial = place / "out" / "visual_element_emb.pkl", place / "out" / "visual_element_emb.pkl.partial"
    process = subprocess.Popen(script, env={**os.environ, "SLOW": "0.06", "OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while not (partial / "chunk-000000.json").exists() and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # into the middle of the next chunk
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not file.exists() and (partial / "chunk-000000.json").exists()
    assert not (partial / "chunk-000002.json").exists()
    before = (partial / "chunk-000000.json").stat().st_mtime_ns
    other = subprocess.run([*script, "-b", "4"], capture_output=True, text=True)
    assert other.returncode == 2 and "batch_size = 2, and this run has batch_size = 4" in other.stderr
    assert (partial / "chunk-000000.json").stat().st_mtime_ns == before
    again = subprocess.run(script, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = load_embeddings(file)
    assert found.content_hash == whole.content_hash and found.image_paths == whole.image_paths
    assert "70 x 5" in again.stdout


def test_finished_chunks_are_not_computed_again(place, monkeypatch):
    calls = []
    features = room.features_of

    def counted(*arguments):
        calls.append(len(arguments[2].rows))
        if sum(calls) == 50:  # 32 rows a chunk: in the second of three
            raise KeyboardInterrupt
        return features(*arguments)

    monkeypatch.setattr(room, "features_of", counted)
    with pytest.raises(KeyboardInterrupt):
        run(place)
    calls.clear()
    run(place)
    assert sum(calls) == 70 - 32


def test_two_files_over_one_decode_are_the_files_made_apart(place, monkeypatch):
    alone = [load_embeddings(run(place, f"alone{crop}.pkl", preprocessing=preprocessing(12, crop)))
             for crop in (12, 8)]
    images, targets = folder_images(place / "in", "toy", "train"), []
    for crop in (12, 8):
        backbone = load_backbone(f"{place}/net.py:net", "none", crop=crop)
        provenance = {"model": backbone.model, "weights_hash": backbone.weights_hash, "node": HEAD_INPUT}
        targets.append(Target(backbone, Node(HEAD_INPUT, backbone.head), place / "out" / f"{crop}.pkl", provenance))
    features, calls = room.features_of, []

    def stopped(target, *more):
        calls.append(target.file.name)
        if len(calls) == 50:  # in the second chunk of 16 batches x 2 files
            raise KeyboardInterrupt
        return features(target, *more)

    monkeypatch.setattr(room, "features_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed_together(images, targets, 2, 0, CPU)
    (targets[0].partial / "chunk-000000.json").unlink()  # as if only the other had come so far
    embed_together(images, targets, 2, 0, CPU)
    assert calls[50:66] == ["12.pkl"] * 16 and set(calls[66:]) == {"12.pkl", "8.pkl"}
    for before, target in zip(alone, targets, strict=True):
        assert load_embeddings(target.file).content_hash == before.content_hash
    (place / "out" / "8.pkl").unlink()
    calls.clear()
    embed_together(images, targets, 2, 0, CPU)
    assert set(calls) == {"8.pkl"}


def test_ranks_share_the_chunks_and_rank_0_writes(place, monkeypatch):
    whole = load_embeddings(run(place, "whole.pkl"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run(place)
    assert [file.name for file in sorted((place / "out" / "x.pkl.partial").glob("chunk-*"))] == ["chunk-000001.json"]
    assert not (place / "out" / "x.pkl").exists()
    monkeypatch.setenv("RANK", "0")
    assert load_embeddings(run(place)).content_hash == whole.content_hash


def test_a_finished_file_is_kept_and_other_settings_are_refused(place, capsys):
    file = run(place)
    before = file.stat().st_mtime_ns
    partial = file.with_name("x.pkl.partial")
    partial.mkdir()  # as a kill just after the file was written leaves it
    run(place)
    assert not partial.exists()
    assert "done already" in capsys.readouterr().out and file.stat().st_mtime_ns == before
    images = folder_images(place / "in", "toy", "train")
    with pytest.raises(UserError, match="differs in node .'head_input' and 'layer3'.*--model_name"):
        is_done(images, file, {"node": "layer3"})
    (place / "in" / "cat" / "00.png").unlink()
    with pytest.raises(UserError, match="its images .70 then, 69 now"):
        run(place)


def test_features_that_are_not_finite_name_the_image(place):
    backbone = load_backbone(f"{place}/net.py:net", "none")
    backbone.module[1].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="features of cat/00.png are not finite"):
        run(place, module=backbone.module)


def test_features_that_are_all_the_same_are_refused(place):
    backbone = load_backbone(f"{place}/net.py:net", "none")
    backbone.module[1].weight.zero_()
    with pytest.raises(UserError, match="all the same"):
        run(place, batch_size=10, module=backbone.module)


def test_nothing_readable(place):
    for file in (place / "in").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 70 images"):
        run(place)
