"""The benchmarks run at toy size and write what they measured; what the figures are is the machine's business."""

import importlib
import json
import multiprocessing
import platform
import time

import pytest
import torch

from bench import busy, embeddings, gpu, grid, heads, memory, segments, table, timing
from iis.cli import parse
from iis.runtime import UserError

IMAGES = "--pairs 1 --images 6 --batch_size 4 --workers 0"
RUNS = {  # file: script, flags, number of results
    "heads": (heads, "--pairs 1 --num_concepts 16 --batch_size 8 --width 8", 6),
    "grid": (grid, "--pairs 1 --widths 8,9 --classes 3 --workers 0 --num_train 60 --num_val 20 --num_concepts 16 "
             "--batch_size 32 --jobs 2", 4),
    "segments": (segments, "--pairs 1 --photographs 0", 1),
    "embeddings": (embeddings, f"{IMAGES} --model resnet20", 2),
    "together": (embeddings, f"{IMAGES} --together resnet20,resnet32", 1),
    "busy": (busy, "--stages 1 --images 2 --neighbours 1", 1),
    "gpu": (gpu, "--pairs 1 --device cpu --num_train 60 --num_val 20 --width 8 --num_concepts 16 --num_classes 3 "
            "--num_elements 40 --batch_size 32 --epochs 1 --fraction 0.5 --models resnet20 --images 9 --distinct 3 "
            "--embedding_batch 4 --workers 0 --uncompiled --profile", 5)}


@pytest.mark.parametrize("name", RUNS)
def test_runs_at_toy_size_and_in_the_table(tmp_path, name, monkeypatch, capsys):
    script, flags, count = RUNS[name]
    where = script.__name__.replace(".", "/") + ".py"
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(timing.sys, "argv", [where, *flags.split()])
    out = script.main(parse(script.Settings, flags.split()))
    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert (out.name, written["command"], len(written["results"])) == (f"{name}.json", f"python {where} {flags}", count)
    assert all(result.get("ratio", result.get("seconds")) > 0 for result in written["results"].values())
    assert {"processor", "vectors", "threads", "load", "torch", "numpy"} <= set(written["machine"])
    table.main(parse(table.Settings, ["--results", str(tmp_path)]))
    again = capsys.readouterr().out
    assert printed.endswith(again) and [line.split(" | ")[0] for line in again.splitlines()[2:]] == [
        f"| {result}" for result in written["results"]]
    if name == "gpu":  # fp32 and tf32, on the device and on the host
        assert (tmp_path / "gpu_profile.txt").read_text().count("Self CPU time total") == 4


def test_parts_that_would_not_end_in_time_are_left_out(tmp_path, capsys):
    flags = f"--device cpu --models resnet20,resnet32 --uncompiled --minutes 0 --out {tmp_path}/x.json".split()
    settings = parse(gpu.Settings, flags)
    planned = {name: guess_s for name, guess_s, _ in gpu.parts(settings, torch.device("cpu"))}
    # Must: 75 and 40 s of 30 epochs, of which five run; 720 and 300 s, of which two tenths of an epoch. Then three
    # times 2 x 32,768 images at 2000 a second.
    assert list(planned.values()) == pytest.approx([12.5, 20 / 3, 9.8, 7, 98.304, 98.304])
    assert not json.loads(gpu.main(settings).read_text())["results"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out")[0] for line in lines[:6]] == list(planned)


def test_a_ratio_is_the_median_of_pairs_and_parts_are_multiplied(monkeypatch):
    ticks = iter([0, 1, 0, 1, *(0, 6), *(0, 2), *(0, 10), *(0, 2), *(0, 8), *(0, 8)])  # a warm-up, then three pairs
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    result = timing.paired([(lambda: None, 2.0)], lambda: None, 3)
    assert result == {"ratio": 6.0, "lowest": 2.0, "highest": 10.0, "plain_s": 16.0, "fast_s": 2.0}


def test_every_command_of_busy_is_one_that_its_script_knows(tmp_path):
    commands = busy.commands(parse(busy.Settings, []), tmp_path)
    assert {what[:7] for what in commands} == {f"stage {number}" for number in (1, 2, 3, 4)}
    for command in commands.values():
        script, *flags = command.split()
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        parse(module.Settings, flags)
    with pytest.raises(UserError, match="segment_extractor.py failed: error: .*images"):
        busy.run(commands["stage 1: segments"], tmp_path)  # there are none


@pytest.mark.skipif(platform.system() != "Linux", reason="neighbours are forked")
def test_neighbours_are_busy_and_end_with_their_block():
    with pytest.raises(KeyboardInterrupt), busy.neighbours(2):
        neighbours, began = multiprocessing.active_children(), time.process_time()
        time.sleep(0.1)
        assert len(neighbours) == 2 and all(neighbour.is_alive() for neighbour in neighbours)
        assert time.process_time() - began < 0.05  # they compute, this process does not
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()


def test_must_and_aim_are_the_least_of_a_gain_and_the_most_of_the_rest():
    machine = {"processor": "CPU", "vectors": "AVX2", "cores": 2, "threads": 1}
    bounds = {"must": 3, "aim": 2}
    ratio = {"ratio": 2.5, "lowest": 2, "highest": 4}
    gain, busy_line, size = (timing.line_of("x", {**result, **bounds}, machine) for result in (
        {**ratio, "plain_s": 5, "fast_s": 2}, {**ratio, "quiet_s": 2, "busy_s": 5}, {"gib": 1.5}))
    assert [(line["plain"], line["here"], line["must"]) for line in (gain, busy_line, size)] == [
        ("5.00 s", "2.00 s", "3 ×"), ("2.00 s quiet", "5.00 s busy", "≤ 3 ×"), ("–", "1.50 GiB", "≤ 3 GiB")]
    assert gain["machine"] == "CPU (AVX2), 2 cores, 1 thread"
    assert timing.line_of("x", {"seconds": 9}, {**machine, "gpu": "H100"})["machine"].startswith("H100, CPU (AVX2)")


def test_the_plain_head_is_the_recipe():
    """What the trainer is compared with keeps as many concepts as the sparsifier and gives its interpretations."""
    from IP_training.predictor import InterpretationHeads, interpret

    data = grid.Data.made_up(30, 2, 12, 4, 20)
    plain, ours = grid.PlainHead(data, 0.7), InterpretationHeads([0.7], 20, 4, torch.Generator().manual_seed(0))
    ours.weight.data[0], ours.bias.data[0] = plain.linear.weight.data, plain.linear.bias.data
    torch.testing.assert_close(plain.logits(data.h_train), ours(interpret(data.h_train, data.bank_MD))[0].T, rtol=1e-4,
                               atol=1e-5)


def test_features_that_differ_are_not_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(embeddings, "plain_features", lambda *_: torch.ones(6, 64))
    with pytest.raises(UserError, match="a timing would mean nothing"):
        embeddings.main(parse(embeddings.Settings, f"{IMAGES} --model resnet20 --out {tmp_path}/x.json".split()))


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_memory_at_toy_size(tmp_path):
    settings = parse(memory.Settings, ["--width", "16", "--classes", "2"])
    assert 0.05 < memory.alone(settings, memory.stage2, None, 60) < 4
    memory.features(settings, 60, tmp_path)
    assert memory.peak(memory.stage3, settings, 60, tmp_path) > 0.05
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2  # one ratio and the dense head


def test_memory_draws_the_line(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "alone", lambda settings, stage, before, rows: 1 + bool(before) * rows / 128_000)
    out = memory.main(parse(memory.Settings, ["--out", str(tmp_path / "x.json")]))
    found = [result["gib"] for result in json.loads(out.read_text())["results"].values()]
    assert found == pytest.approx([1, 1, 1, 1.5, 2, 11])  # 1 + 1,280,000 / 128,000
    out = memory.main(parse(memory.Settings, ["--out", str(tmp_path / "y.json"), "--fraction=1", "--stages=3"]))
    (name, result), = json.loads(out.read_text())["results"].items()
    assert "1,280,000" in name and "line" not in name and result == {"gib": 11, "must": 24, "aim": 24}


def test_refusals(tmp_path):
    for script, flags in ((grid, "--widths=64x"), (heads, "--pairs=0"), (heads, "--threads=-1"), (gpu, "--fraction=2")):
        with pytest.raises(UserError, match="is not a (whole )?number"):
            parse(script.Settings, [flags])
    with pytest.raises(UserError, match="run a benchmark first"):
        table.main(parse(table.Settings, ["--results", str(tmp_path)]))
