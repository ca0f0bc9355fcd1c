"""Embedding: batches, names and provenance, every row in its place, killed and resumed bit for bit, ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from painted import paint
from PIL import Image

from extractor import embed as module
from extractor.batches import Batch, batches, over_chunks
from extractor.embed import Target, embed_together, folder_name, is_done, plan_target
from iis.backbones import load_backbone
from iis.datasets import ImageSet, folder_images
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

# ---- batches ----


@pytest.fixture
def grey(tmp_path):
    """Seven grey images of 8 x 8, number n of value 10 n; number 3 is broken."""
    (tmp_path / "a").mkdir()
    for number in range(7):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "3.png").write_bytes(b"not an image")
    return folder_images(tmp_path, "toy", "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_same_batches_for_any_number_of_workers(grey, workers):
    rows = [range(0, 3), range(3, 4), range(4, 7)]
    found = list(batches(grey, [preprocessing(8, 8)], rows, workers, CPU))
    assert [batch.rows for batch in found] == [[0, 1, 2], [], [4, 5, 6]]
    pixels = [one for batch in found for one in batch.pixels]
    assert [one[:, 0, 0, 0].tolist() for one in pixels] == [[0, 10, 20], [40, 50, 60]]
    assert all(one.dtype == torch.uint8 and one.shape[1:] == (3, 8, 8) for one in pixels)
    assert list(found[1].unreadable) == [3] and "3.png" in found[1].unreadable[3]
    assert list(batches(grey, [preprocessing(8, 8)], [], 4, CPU)) == []


def test_one_decode_serves_all_and_equal_geometry_shares_the_pixels(grey, monkeypatch):
    opened = []
    whole = type(grey).open
    monkeypatch.setattr(type(grey), "open", lambda self, row: opened.append(row) or whole(self, row))
    kinds = [preprocessing(8, 8), preprocessing(8, 8, mean=(0, 0, 0)), preprocessing(8, 4)]
    (found,) = batches(grey, kinds, [range(0, 4)], 0, CPU)
    assert opened == [0, 1, 2, 3] and found.rows == [0, 1, 2] and found.pixels[1] is found.pixels[0]
    assert found.pixels[2].shape == (3, 3, 4, 4) and found.pixels[2][:, 0, 0, 0].tolist() == [0, 10, 20]


def test_beside_a_gpu_processes_read_and_this_one_computes(grey, monkeypatch):
    monkeypatch.setattr(Batch, "to", lambda self, device: self)
    here, seen, bar = os.getpid(), [], SimpleNamespace(update=lambda steps: seen.append("bar"))

    def compute(place, stream):
        found = [batch.rows for batch in stream]
        seen.append(place)
        return os.getpid(), found

    chunks = [[range(0, 2), range(2, 4)], [range(4, 7)]]
    found = list(over_chunks(grey, [preprocessing(8, 8)], chunks, compute, 2, SimpleNamespace(type="other"), bar))
    assert found == [(0, (here, [[0, 1], [2]])), (1, (here, [[4, 5, 6]]))] and seen == ["bar", "bar", 0, "bar", 1]
    monkeypatch.setattr("iis.processes.available_cores", lambda: 2)
    found = dict(over_chunks(grey, [preprocessing(8, 8)], chunks, compute, 2, CPU, bar))
    assert [found[place][1] for place in (0, 1)] == [[[0, 1], [2]], [[4, 5, 6]]]
    assert here not in {process for process, _ in found.values()}


# ---- names of folders and files; provenance compares nodes, not spellings ----


def one_image(dataset="toy", split="train"):
    return ImageSet(dataset, split, ["a"], [0], ["a/0.png"], "nowhere")


def test_names_of_folders_and_files(tmp_path):
    backbone = load_backbone("resnet20", "none")
    assert folder_name("resnet20", backbone) == "resnet20__none-seed-0"
    assert folder_name("resnet20", backbone, "bf16", "mine") == "mine__bf16"
    backbone.default_weights = backbone.weights
    assert folder_name("resnet20", backbone) == "resnet20"
    layers = ("layer3", "fc", "layer2")
    targets = [plan_target(one_image(), backbone, layer, "net", tmp_path) for layer in layers]
    assert [target.file.name for target in targets] == [f"toy_train_net_{layer}.pt" for layer in layers]
    assert [target.provenance["node"] for target in targets] == ["head_input", "head_input", "layer2"]
    assert targets[0].provenance == targets[1].provenance and targets[0].record == {"layer": "layer3"}
    assert list(targets[0].provenance) == ["model", "weights", "weights_hash", "node", "preprocessing", "precision",
                                           "dataset", "split", "elements"]
    elements = plan_target(one_image("unnamed", "elements"), backbone, "fc", "net", tmp_path,
                           elements={"kind": "segments"})
    assert elements.file == tmp_path / "net" / "visual_element_emb.pkl"  # the published name
    assert elements.provenance["elements"] == {"kind": "segments"} and elements.provenance["dataset"] == "unnamed"
    with pytest.raises(UserError, match="no layer 'layer9'"):
        plan_target(one_image(), backbone, "layer9", "net", tmp_path)


# ---- embedding ----


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("extractor.batches.CPU_CHUNK", 32)  # images: three chunks of 70
    for number in range(70):
        name = f"cat/{number:02d}" if number < 30 else f"dog/{number - 30:02d}"
        paint(tmp_path / "in" / f"{name}.png", (12, 15), seed=number)
    (tmp_path / "net.py").write_text(OWN)
    return tmp_path


def target_of(place, name="x.pkl", crop=None, **changes):
    backbone = load_backbone(f"{place}/net.py:net", "none", crop=crop)
    for key, value in changes.items():
        setattr(backbone, key, value)
    provenance = {"model": backbone.model, "weights_hash": backbone.weights_hash, "node": HEAD_INPUT}
    return Target(backbone, Node(HEAD_INPUT, backbone.head), place / "out" / name, provenance)


def run(place, *names, batch_size=2, workers=0, **changes):
    targets = [target_of(place, name, **changes) for name in names or ["x.pkl"]]
    embed_together(folder_images(place / "in", "toy", "train"), targets, batch_size, workers, CPU)
    return targets[0].file


def stop_at(monkeypatch, count):
    """Every image counted, with Ctrl-C once `count` batches are begun; the names of the files of all batches."""
    calls, features = [], module.features_of

    def counted(targets, pixels, device):
        if len(pixels) > 1:  # not the one that tells the width
            calls.extend(target.file.name for target in targets)
            if len(calls) == count:
                raise KeyboardInterrupt
        return features(targets, pixels, device)

    monkeypatch.setattr(module, "features_of", counted)
    return calls


def test_every_row_is_the_feature_of_its_own_image(place, capsys):
    (place / "in" / "cat" / "07.png").write_bytes(b"broken")
    found = load_embeddings(run(place, workers=2))
    printed = capsys.readouterr()
    assert "1 of 70 images could not be read" in printed.out and "07.png" in printed.out
    assert "x.pkl: 69 x 5," in printed.out and "images/s, cpu" in printed.out
    assert "35/35" in printed.err and "\r" not in printed.err  # progress in a file, as whole lines
    assert found.image_paths == [f"cat/{n:02d}.png" for n in range(30) if n != 7] + [
        f"dog/{n:02d}.png" for n in range(40)]
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
    for number in range(70, 300):  # five chunks of two batches, two of them at a time
        paint(place / "in" / "dog" / f"{number}.png", (12, 15), seed=number)
    whole = load_embeddings(run(place, "whole.pkl", batch_size=32))
    script = [sys.executable, str(ROOT / "extractor" / "visual_element_emb_extractor.py"), "--model",
              f"{place}/net.py:net", "--weights", "none", "--data-path", str(place / "in"), "--save_root", str(place),
              "--model_name", "out", "-b", "32", "-j", "2", "--device", "cpu"]
    file, partial = place / "out" / "visual_element_emb.pkl", place / "out" / "visual_element_emb.pkl.partial"
    process = subprocess.Popen(script, env={**os.environ, "SLOW": "0.2", "OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while not (partial / "chunk-000000.json").exists() and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # into the middle of the next chunk
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not file.exists() and not (partial / "chunk-000002.json").exists()
    assert json.loads((partial / "chunk-000000.json").read_text()) == {"unreadable": {}}
    assert {"pictures", "pictures_hash", "width", "batch_size"} <= set(json.loads(
        (partial / "manifest.json").read_text())) and (partial / "features.f32").stat().st_size >= 64 * 5 * 4
    before = (partial / "chunk-000000.json").stat().st_mtime_ns
    other = subprocess.run([*script, "-b", "16"], capture_output=True, text=True)
    assert other.returncode == 2 and "batch_size = 32, and this run has batch_size = 16" in other.stderr
    assert (partial / "chunk-000000.json").stat().st_mtime_ns == before
    again = subprocess.run(script, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = load_embeddings(file)
    assert found.content_hash == whole.content_hash and found.image_paths == whole.image_paths
    assert "300 x 5" in again.stdout


def test_processes_give_the_bits_of_one_and_their_errors(place, monkeypatch, capsys):
    monkeypatch.setattr("iis.processes.available_cores", lambda: 3)
    (place / "in" / "cat" / "07.png").write_bytes(b"broken")
    ran, features = [], module.features_of
    monkeypatch.setattr(module, "features_of", lambda *given: (ran.append(given), features(*given))[1])
    one, three = (load_embeddings(run(place, f"{workers}.pkl", workers=workers)) for workers in (1, 3))
    assert len(ran) == 1 + 35 + 1  # the width; all batches; the width, and the batches in other processes
    assert one.content_hash == three.content_hash and one.image_paths == three.image_paths
    assert one.record["unreadable"] == three.record["unreadable"] == ["cat/07.png"]
    assert capsys.readouterr().err.count("35/35") == 2
    (place / "net.py").write_text(OWN.replace("return x", "return x / (len(x) == 1)"))  # infinite for a whole batch
    with pytest.raises(UserError, match="not finite"):
        run(place, "other.pkl", workers=3)


def test_two_files_over_one_decode_are_the_files_made_apart(place, monkeypatch):
    alone = [load_embeddings(run(place, f"alone{crop}.pkl", crop=crop)) for crop in (12, 8)]
    images = folder_images(place / "in", "toy", "train")
    targets = [target_of(place, f"{crop}.pkl", crop=crop) for crop in (12, 8)]
    calls = stop_at(monkeypatch, 50)  # in the second chunk of 16 batches x 2 files
    with pytest.raises(KeyboardInterrupt):
        embed_together(images, targets, 2, 0, CPU)
    (targets[0].partial / "chunk-000000.json").unlink()  # as if only the other had come so far
    embed_together(images, targets, 2, 0, CPU)
    assert len(calls) == 50 + 2 * 35  # a chunk that one file lacks is computed again for both
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
        is_done(file, {"node": "layer3"}, images)
    (place / "in" / "cat" / "00.png").unlink()
    with pytest.raises(UserError, match="its images .70 then, 69 now"):
        run(place)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "features of cat/00.png are not finite"),
                                                (0, "all the same")])
def test_features_that_cannot_be_right_are_refused(place, value, message):
    backbone = load_backbone(f"{place}/net.py:net", "none")
    backbone.module[1].weight.fill_(value)
    with pytest.raises(UserError, match=message):
        run(place, batch_size=10, module=backbone.module)


def test_resumed_at_a_chunk_a_damaged_folder_and_nothing_readable(place, monkeypatch):
    calls = stop_at(monkeypatch, 25)  # 16 batches a chunk: in the second of three
    for name in ("whole.pkl", "x.pkl"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            run(place, name)
    run(place, "whole.pkl")
    assert len(calls) == 25 + 35 - 16  # finished chunks are not computed again
    with open(place / "out" / "x.pkl.partial" / "features.f32", "ab") as handle:
        handle.write(bytes(5000))
    with pytest.raises(UserError, match="is damaged .features.f32 has another size"):
        run(place)
    for file in (place / "in").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 70 images"):
        run(place, "y.pkl")
