"""What of a captured step can be tested without a GPU: when it captures, what it copies, when it runs plainly."""

import contextlib

import pytest
import torch

from IP_training import cuda_graph
from IP_training.cuda_graph import WARM_UP, Captured


class FakeGraph:
    """Replays by calling again what ran during its capture."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for call in self.calls:
            call()


class Capture:
    """Stands for `torch.cuda.graph`."""

    def __init__(self, graph, stream, capture_error_mode):
        assert stream == "a stream of cpu"  # of the device of the tensors, which is a CPU here
        self.graph = graph

    def __enter__(self):
        Capture.current = self.graph

    def __exit__(self, *error):
        Capture.current = None


@pytest.fixture
def on_gpu(monkeypatch):
    """CPU tensors that say they are on a GPU, and a step that counts: out = sum of 2x, seen = plain calls."""
    Capture.current = None
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")

    class Gpu(torch.Tensor):
        is_cuda = True

    return lambda values: torch.tensor(values).as_subclass(Gpu)


def counted(fails=False):
    seen, out = [], torch.zeros(1)

    def step(x):
        def run():
            out.copy_(2 * x.sum())
        if Capture.current is None:
            seen.append(x.tolist())
            run()
            return out.clone()
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        Capture.current.calls.append(run)
        return out

    return Captured(step), seen


def test_a_step_is_captured_after_the_warm_up_and_reads_each_batch(on_gpu):
    step, seen = counted()
    batches = [[1.0 * number, 2.0] for number in range(WARM_UP + 4)]
    assert [step(on_gpu(batch)).item() for batch in batches] == [2 * sum(batch) for batch in batches]
    assert seen == batches[:WARM_UP]  # the others were replayed
    assert step(on_gpu([5.0])).item() == 10 and seen[-1] == [5.0]  # the last batch has another shape
    assert step(on_gpu([7.0, 1.0])).item() == 16 and len(seen) == WARM_UP + 1


def test_what_cannot_be_captured_runs_plainly_and_says_so_once(on_gpu, capsys):
    step, seen = counted(fails=True)
    for number in range(WARM_UP + 3):
        assert step(on_gpu([1.0 * number])).item() == 2 * number
    assert len(seen) == WARM_UP + 3
    assert capsys.readouterr().err.count("not permitted when stream is capturing") == 1


def test_a_cpu_runs_plainly():
    step, seen = counted()
    for number in range(WARM_UP + 3):
        assert step(torch.tensor([1.0 * number])).item() == 2 * number
    assert len(seen) == WARM_UP + 3 and step.graph is None and cuda_graph.WARM_UP == 3
