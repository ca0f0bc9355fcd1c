"""The benchmarks run at toy size and write what they measured; what the figures are is the machine's business."""

import json

import pytest

from bench import cuda_embeddings, cuda_end2end, cuda_heads, grid_epoch, heads, kmeans, saga, table, timing
from iis.runtime import UserError

TINY = ["--pairs", "1", "--num_concepts", "16"]
SHAPE = [*TINY, "--device", "cpu", "--num_train", "60", "--num_val", "20", "--width", "8", "--num_classes", "3",
         "--batch_size", "32", "--epochs", "1"]
RUNS = {"heads": (heads, [*TINY, "--batch_size", "8"], 4),
        "grid_epoch": (grid_epoch, [*TINY, "--shapes", "8x3", "--workers", "0", "--num_train", "60", "--num_val", "20",
                                    "--batch_size", "32"], 1),
        "saga": (saga, [*TINY, "--num_train", "40", "--batch_size", "8", "--num_classes", "3"], 1),
        "kmeans": (kmeans, [*TINY, "--num_elements", "300", "--width", "8"], 1),
        "cuda_heads": (cuda_heads, SHAPE, 4),
        "cuda_heads_tf32": (cuda_heads, [*SHAPE, "--tf32"], 4),
        "cuda_embeddings": (cuda_embeddings, ["--pairs", "1", "--device", "cpu", "--models", "resnet20", "--images",
                                              "9", "--distinct", "3", "--batch_size", "4", "--workers", "0",
                                              "--uncompiled"], 1),
        "cuda_end2end": (cuda_end2end, [*SHAPE, "--num_elements", "40", "--fraction", "0.5"], 3)}


@pytest.mark.parametrize("name", RUNS)
def test_runs_at_toy_size(tmp_path, name, capsys):
    script, flags, count = RUNS[name]
    script.main(script.parser().settings([*flags, "--out", str(tmp_path / f"{name}.json")]))
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(written["results"]) == count and written["command"].split()[1] == f"{script.__name__.replace('.', '/')}.py"
    assert all(result.get("ratio", result.get("seconds")) > 0 for result in written["results"].values())
    assert {"device", "torch", "numpy", "threads"} <= set(written["machine"])
    capsys.readouterr()
    table.main(table.parser().settings(["--results", str(tmp_path)]))
    assert len(capsys.readouterr().out.splitlines()) == count + 2


def test_a_ratio_is_the_median_of_pairs_and_parts_are_multiplied(monkeypatch):
    ticks = iter([0, 1, *(0, 6), *(0, 2), *(0, 10), *(0, 2), *(0, 8), *(0, 8)])  # one warm-up, then three pairs
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    result = timing.paired([(lambda: None, 2.0)], lambda: None, 3)
    assert result == {"ratio": 6.0, "lowest": 2.0, "highest": 10.0, "plain_s": 16.0, "fast_s": 2.0}


def test_the_plain_head_is_the_recipe(tmp_path):
    """What the trainer is compared with keeps as many concepts as the sparsifier and gives its interpretations."""
    import torch

    from IP_training.predictor import InterpretationHeads, interpret

    bank_MD, h_BD = torch.nn.functional.normalize(torch.randn(20, 12), dim=1), torch.randn(30, 12)
    plain = grid_epoch.PlainHead(bank_MD, 4, 0.7, 0.01)
    ours = InterpretationHeads([0.7], 20, 4, torch.Generator().manual_seed(0))
    ours.weight_GCM.data[0], ours.bias_GC.data[0] = plain.linear.weight.data, plain.linear.bias.data
    torch.testing.assert_close(plain.logits(h_BD), ours(interpret(h_BD, bank_MD))[0], rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="write D and C as 64x10"):
        grid_epoch.main(grid_epoch.parser().settings(["--shapes", "64"]))
    for script, flags, sentence in (
            (grid_epoch, ["--shapes", "0x3"], "write D and C as 64x10"),
            (grid_epoch, ["--workers", "4,x"], "--workers 4,x: x is not a whole number"),
            (grid_epoch, ["--plain_heads", "1"], "invalid choice"), (heads, ["--pairs", "0"], "is not a whole number"),
            (heads, ["--threads=-1"], "is not a whole number"), (saga, ["--batch_size", "0"], "is not a whole number"),
            (kmeans, ["--num_concepts", "1"], "2 or more centres"),
            (kmeans, ["--num_elements", "9"], "2 or more centres, and as many elements"),
            (cuda_end2end, ["--fraction", "2"], "above 0 and at most 1")):
        with pytest.raises(UserError, match=sentence):
            script.main(script.parser().settings(flags))
    with pytest.raises(UserError, match="run a benchmark first"):
        table.main(table.parser().settings(["--results", str(tmp_path)]))
    (tmp_path / "other.json").write_text('{"results": 3}')
    with pytest.raises(UserError, match="none of these files holds a ratio"):
        table.main(table.parser().settings(["--results", str(tmp_path)]))
