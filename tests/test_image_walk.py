"""Stage 1's walk: which images, which names, the same folder however often it is killed, what is refused early."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from painted import class_folders, paint
from PIL import Image

from extractor import patch_extractor, segment_extractor
from extractor.elements import patches
from extractor.image_walk import encoded, read_log_rows, read_stage1, walk
from iis.cli import parse
from iis.datasets import TorchvisionImageSet, folder_images
from iis.runtime import ROOT, UserError

FOLDER = ROOT / "extractor"
SETTINGS = {"kind": "patches"}


def contents(folder):
    """Every file but those that record the time, the machine or the number of workers."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name not in ("complete.json", "settings.yaml")}


def one_pixel(image, name):
    return [("0_0", image.resize((1, 1)))]


def dies(image, name):
    os._exit(9)


def run(script, *flags):
    script.main(parse(script.Settings, [str(flag) for flag in flags]))


@pytest.fixture
def root(tmp_path):
    class_folders(tmp_path / "data", 4, (12, 10), ("cat", "dog"))
    return tmp_path / "data"


def test_first_readable_images_of_each_class_and_the_others_listed(root, tmp_path, capsys):
    (root / "cat" / "1.png").write_bytes(b"not an image")
    paint(root / "cat" / "0.png", size=(3, 90))  # readable, but too narrow for patches
    (root / "dog" / "3.png").write_bytes(b"")  # never reached
    summary = walk(folder_images(root, "d", "train"), patches, tmp_path / "out", SETTINGS, image_per_class=2)
    rows = read_log_rows(tmp_path / "out")
    assert [row["picture"] for row in rows if "files" in row] == ["cat/2.png", "cat/3.png", "dog/0.png", "dog/1.png"]
    assert [row["picture"] for row in summary["unreadable"]] == ["cat/0.png", "cat/1.png"]
    assert "3 x 90 pixels are too few" in summary["unreadable"][0]["unreadable"]
    assert (summary["pictures"], summary["elements"]) == (4, 64)
    assert len(folder_images(tmp_path / "out", "d", "train")) == 64  # what stage 2 will find
    printed = capsys.readouterr().out
    assert "4 images, 64 elements, 2 unreadable" in printed and "skipped cat/1.png" in printed


def test_a_class_without_a_readable_image_is_named_and_can_be_mended(root, tmp_path):
    for number in range(4):
        (root / "cat" / f"{number}.png").write_bytes(b"")
    images, out = folder_images(root, "d", "train"), tmp_path / "out"
    with pytest.raises(UserError, match="class cat has no readable image among its 4"):
        walk(images, patches, out, SETTINGS, image_per_class=2)
    with pytest.raises(UserError, match="has not finished"):
        read_stage1(out)
    for number in range(4):
        paint(root / "cat" / f"{number}.png", seed=number)
    assert walk(images, patches, out, SETTINGS, image_per_class=2)["pictures"] == 4
    walk(images, patches, tmp_path / "fresh", SETTINGS, image_per_class=2)
    assert contents(out) == contents(tmp_path / "fresh")


def test_every_colour_mode_and_the_formats(tmp_path):
    for mode, suffix in (("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpg"), ("L", "jpg")):
        paint(tmp_path / "data" / "c" / f"{mode}{suffix}.{suffix}", mode=mode)
    summary = walk(folder_images(tmp_path / "data", "d", "train"), patches, tmp_path / "out", SETTINGS, format="png")
    assert summary["pictures"] == 6 and not summary["unreadable"]
    for row in read_log_rows(tmp_path / "out"):
        rgb = Image.open(tmp_path / "data" / row["picture"]).convert("RGB")
        first = Image.open(tmp_path / "out" / row["files"][0])
        assert first.mode == "RGB" and first.tobytes() == dict(patches(rgb, ""))["0_0"].tobytes()
    rgb.save(tmp_path / "b.jpg", quality=95)
    saved, reference = Image.open(io.BytesIO(encoded(rgb, "jpeg"))), Image.open(tmp_path / "b.jpg")
    assert {(layer[1], layer[2]) for layer in saved.layer} == {(1, 1)}  # sampling of Y, Cb, Cr: full colour
    assert saved.quantization == reference.quantization


def test_names_never_meet_and_keep_images_together(tmp_path):
    for seed, name in enumerate(["a.jpg", "a.png", "a_0.png", "sub/a.png", "b.png"]):
        paint(tmp_path / "data" / "c" / name, seed=seed)
        paint(tmp_path / "data" / "plain" / f"{seed}.png", seed=seed)
    walk(folder_images(tmp_path / "data", "d", "train"), patches, tmp_path / "out", SETTINGS)
    rows = read_log_rows(tmp_path / "out")
    files = [file for row in rows for file in row["files"]]
    assert len(set(files)) == len(files) == 160 == sum(file.endswith(".jpg") for file in contents(tmp_path / "out"))
    assert "c/sub/a.png_3_3.jpg" in files and "plain/0_0_0.jpg" in files
    owner = {file: row["picture"] for row in rows for file in row["files"]}
    order = [owner[name] for name in folder_images(tmp_path / "out", "d", "train").names]
    assert sum(one != other for one, other in zip(order, order[1:], strict=False)) == len(rows) - 1


def test_the_number_of_workers_changes_nothing(root, tmp_path):
    (root / "cat" / "1.png").write_bytes(b"not an image")
    for workers in (1, 2):
        run(segment_extractor, "--data_root", root, "--save_root", tmp_path / str(workers), "--image_per_class", 3,
            "--workers", workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) > 20


def test_a_torchvision_set_is_cut_by_our_order_and_a_dead_worker_is_explained(tmp_path):
    source = [(Image.new("RGB", (8, 8), (number, 0, 0)), number % 2) for number in range(6)]
    images = TorchvisionImageSet("d", "train", ["even", "odd"], [0, 0, 0, 1, 1, 1],
                                 [f"{'even' if n < 3 else 'odd'}/{n:06d}" for n in range(6)], tmp_path, source,
                                 [0, 2, 4, 1, 3, 5])
    walk(images, one_pixel, tmp_path / "out", SETTINGS, image_per_class=2, format="png", workers=2)
    reds = {row["picture"]: Image.open(tmp_path / "out" / row["files"][0]).getpixel((0, 0))[0]
            for row in read_log_rows(tmp_path / "out")}
    assert reds == {"even/000000": 0, "even/000001": 2, "odd/000003": 1, "odd/000004": 3}
    with pytest.raises(UserError, match="memory"):
        walk(images, dies, tmp_path / "other", SETTINGS, workers=2)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_at_any_moment_and_started_again(tmp_path):
    for number in range(60):
        paint(tmp_path / "data" / "ab"[number % 2] / f"{number:02d}.png", size=(480, 360), seed=number)  # slow
    (tmp_path / "data" / "a" / "04.png").write_bytes(b"broken")
    command = [sys.executable, str(FOLDER / "patch_extractor.py"), "--data_root", str(tmp_path / "data"),
               "--image_per_class", "29", "--workers", "2", "--save_root"]
    out = tmp_path / "killed"
    for stop in (signal.SIGKILL, signal.SIGINT):
        before = len(read_log_rows(out))
        with open(tmp_path / "said", "w") as said:
            process = subprocess.Popen([*command, str(out)], stdout=said, stderr=said, start_new_session=True)
            while process.poll() is None and len(read_log_rows(out)) <= before:
                time.sleep(0.01)
            assert process.poll() is None, "it ended before it could be killed"
            (os.killpg if stop == signal.SIGINT else os.kill)(process.pid, stop)  # Ctrl-C reaches the workers too
            process.wait()
        with pytest.raises(UserError, match="has not finished"):
            read_stage1(out)
    said = (tmp_path / "said").read_text()
    assert process.returncode == 130 and "it goes on where it was" in said and "Traceback" not in said
    deadline = time.time() + 20
    while (left := _session(process.pid) if shutil.which("ps") else []) and time.time() < deadline:
        time.sleep(0.1)
    assert not left, "Ctrl-C left workers behind"
    for name in ("undisturbed", "killed"):
        done = subprocess.run([*command, str(tmp_path / name)], check=True, timeout=60, capture_output=True, text=True)
        assert "%|" in done.stderr and "\r" not in done.stderr  # progress in a file comes as whole lines
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert read_stage1(out)["kind"] == "patches"


def _session(leader):
    """Processes of a session, other than those that ended and wait for their parent."""
    listed = subprocess.run(["ps", "-eo", "sid,pid,stat"], capture_output=True, text=True).stdout.splitlines()[1:]
    return [pid for sid, pid, state in map(str.split, listed) if int(sid) == leader and not state.startswith("Z")]


def test_half_a_line_a_stray_file_and_a_lost_element_are_mended(root, tmp_path):
    images, out = folder_images(root, "d", "train"), tmp_path / "out"
    walk(images, patches, out, SETTINGS)
    whole = contents(out)
    log = (out / "pictures.jsonl").read_text().splitlines(keepends=True)
    (out / "pictures.jsonl").write_text("".join(log[:3]) + log[3][:25])
    (out / "cat" / ".0_0_0.deadbeef.tmp.jpg").write_bytes(b"half")
    (out / "cat" / "0_2_2.jpg").unlink()
    walk(images, patches, out, SETTINGS)
    assert contents(out) == whole
    # A finished folder is left alone.
    before = (out / "complete.json").stat().st_mtime_ns, (out / "dog" / "0_0_0.jpg").stat().st_mtime_ns
    walk(images, patches, out, SETTINGS)
    assert before == ((out / "complete.json").stat().st_mtime_ns, (out / "dog" / "0_0_0.jpg").stat().st_mtime_ns)


def test_other_settings_other_images_and_foreign_folders_are_refused(root, tmp_path):
    images, out = folder_images(root, "d", "train"), tmp_path / "out"
    walk(images, one_pixel, out, SETTINGS)
    (tmp_path / "mine" / "holiday").mkdir(parents=True)
    for folder, changes, sentence in ((out, {"format": "png"}, "format = 'jpeg', and this run has format = 'png'"),
                                      (out, {"image_per_class": 3}, "image_per_class = 10"),
                                      (tmp_path / "mine", {}, "did not make"),
                                      (root / "segments", {}, "inside the data set")):
        with pytest.raises(UserError, match=sentence):
            walk(images, one_pixel, folder, SETTINGS, **changes)
    paint(root / "dog" / "00.png")
    with pytest.raises(UserError, match="pictures = '8 from"):
        walk(folder_images(root, "d", "train"), one_pixel, out, SETTINGS)
    assert not (root / "segments").exists()
    assert read_stage1(root) is None and read_stage1(tmp_path / "nowhere") is None  # made elsewhere


@pytest.mark.parametrize("script, flags, recorded", [
    (segment_extractor, [], {"segment_choice": "sample", "bounding_box": "whole", "dataset": "unnamed", "seed": 0,
                             "kind": "segments", "grey": 117, "n_segments": [10, 20, 30], "jaccard_at_most": 0.5}),
    (segment_extractor, ["--protocol", "release"], {"segment_choice": "first", "bounding_box": "short"}),
    (segment_extractor, ["--protocol", "release", "--bounding_box", "whole", "--dataset", "pets"],
     {"segment_choice": "first", "bounding_box": "whole", "dataset": "pets"}),
    (patch_extractor, ["--format", "png"], {"kind": "patches", "grid": 4, "format": "png"})])
def test_scripts_record_what_decides_the_pixels(root, tmp_path, script, flags, recorded):
    run(script, "--data_root", root, "--save_root", tmp_path / "o", "--workers", 1, "--image_per_class", 1, *flags)
    assert recorded.items() <= read_stage1(tmp_path / "o").items()


@pytest.mark.parametrize("flags, sentence", [
    ([], "say which images"), (["--data_root", "DATA"], "say where the segments go"),
    (["--data_root", "nowhere", "--save_root", "x"], "there is no folder"),
    (["--dataset", "nowhere"], "there is no configuration nowhere"),
    (["--dataset", "nowhere", "--dry_run"], "there is no configuration nowhere"),
    (["--data_root", "DATA", "--save_root", "x", "--image_per_class", "0"], "whole number above 0")])
def test_what_the_user_can_mend(root, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        run(segment_extractor, *[flag.replace("DATA", str(root)) for flag in flags])


def test_a_flat_val_folder_and_other_classes_are_refused_before_anything_is_cut(root, tmp_path):
    (root.parent / "toy.yaml").write_text(f"name: toy\nroot: {root.parent}\ntrain: data\nval: val\n")
    flags = ["--dataset", root.parent / "toy.yaml", "--save_root", tmp_path / "out", "--workers", 1]
    paint(root.parent / "val" / "a.png")
    with pytest.raises(UserError, match="images but no class folders .a.png"):
        run(patch_extractor, *flags)
    for name in ("cat", "cow"):
        paint(root.parent / "val" / name / "a.png")
    with pytest.raises(UserError, match="only in train .'dog'., only in val .'cow'."):
        run(patch_extractor, *flags)
    assert not (tmp_path / "out").exists()
    (root.parent / "val" / "cow").rename(root.parent / "val" / "dog")
    run(patch_extractor, *flags)
    assert read_stage1(tmp_path / "out")["dataset"] == "toy"


@pytest.mark.parametrize("script", [segment_extractor, patch_extractor])
def test_a_dry_run_makes_nothing_and_expects_what_a_run_makes(root, tmp_path, script, capsys):
    before = sorted(tmp_path.rglob("*"))
    flags = ["--data_root", root, "--save_root", tmp_path / "out", "--image_per_class", 3, "--workers", 1]
    run(script, *flags, "--dry-run")
    printed = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "6 of 8 in 2 classes, at most 3 of each" in printed and f"in {tmp_path}/out (" in printed
    count, made = (float(re.search(pattern, printed)[1].replace(",", "")) for pattern in (
        r"elements: about ([\d,]+) \(", r"disk: +about ([\d.]+) [kM]B in"))
    run(script, *flags)
    sizes = [file.stat().st_size for file in (tmp_path / "out").rglob("*.jpg")]
    assert 0.7 < len(sizes) / count < 1.4 and 0.7 < sum(sizes) / (made * {"k": 1e3, "M": 1e6}[
        re.search(r"[\d.]+ ([kM])B in", printed)[1]]) < 1.4


def test_a_dry_run_without_images_says_what_they_would_take(tmp_path, capsys):
    (tmp_path / "imagenet.yaml").write_text(f"root: {tmp_path}/absent\n")
    run(segment_extractor, "--dataset", tmp_path / "imagenet.yaml", "--dry_run")
    printed = capsys.readouterr().out
    assert "not there yet: imagenet has no train folder" in printed
    assert "at most 150,000, 15 an image" in printed and "7.5 GB if they are photographs" in printed
    run(patch_extractor, "--data_root", tmp_path / "none", "--save_root", tmp_path, "--dry_run", "--image_per_class", 2)
    assert "at most 32 of each class" in capsys.readouterr().out
