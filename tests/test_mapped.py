"""A mapped file: the numbers that are in it, and little memory for many of them."""

import json
import subprocess
import sys

import numpy as np
from conftest import ROOT

from bench import memory
from extractor.mapped import mapped
from iis.embedding_file import load_embeddings
from iis.results import read_ledger
from IP_training import training_run


def test_the_numbers_of_the_file(tmp_path):
    numbers = np.random.default_rng(0).random((700, 9), dtype=np.float32)
    numbers.tofile(tmp_path / "x")
    with mapped(tmp_path / "x", 700, 9) as found:
        assert all(np.array_equal(found, numbers) for _ in range(200))  # over and over, while pages go
    with mapped(tmp_path / "x", 600, 9) as found:
        assert np.array_equal(found, numbers[:600])


def test_what_was_read_does_not_stay(tmp_path):
    code = """
import json, resource, sys, time
import numpy as np
from extractor.mapped import mapped
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
with mapped(sys.argv[1], 100_000, 800) as found:
    total = 0.0
    for start in range(0, 100_000, 2_000):
        total += float(found[start:start + 2_000, 0].sum()) + float(found[start:start + 2_000].max() - 1)
        time.sleep(0.01)
print(json.dumps([before, peak(), total]))
"""
    with open(tmp_path / "x", "wb") as handle:
        for _ in range(50):
            np.ones((2_000, 800), np.float32).tofile(handle)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], cwd=ROOT, capture_output=True, text=True)
    before, after, total = json.loads(done.stdout)
    assert total == 100_000 and after - before < 150_000  # kB, of 320,000 kB read


def test_the_memory_benchmark_draws_the_line(tmp_path, monkeypatch):
    sizes = []

    def child(args, stage, rows):
        sizes.append((stage, rows))
        return {"rows": rows, "peak_gib": 1 + rows / 128_000 * (stage == "stage3"), "seconds": 2.0}

    monkeypatch.setattr(memory, "_child", child)
    out = memory.main(memory.parser().settings(["--out", str(tmp_path / "x.json")]))
    assert sizes == [(stage, rows) for stage in ("stage2", "stage3") for rows in (64_000, 128_000)]
    results = json.loads(out.read_text())["results"]
    assert results[memory.STAGE2]["peak_gib_at_all_rows"] == 1  # no growth
    assert abs(results[memory.STAGE3]["peak_gib_at_all_rows"] - 11) < 1e-9  # 1 + 1,280,000 / 128,000


def test_the_memory_benchmark_at_toy_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "DENSE_HEADS", tmp_path)
    for stage in ("stage2", "stage3"):
        memory.main(memory.parser().settings(["--child", stage, "--rows", "60", "--width", "16", "--classes", "2",
                                              "--scratch", str(tmp_path)]))
        assert float(capsys.readouterr().out.splitlines()[-1]) > 0.05
    assert len(load_embeddings(tmp_path / "x.pt")) == 60
    assert {row["ratio"] for row in read_ledger(tmp_path / "out" / "results.jsonl")} == {-1, 0.5}
