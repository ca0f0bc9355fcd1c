"""The sparsifier's kernel against a plain loop, bit for bit, through Triton's interpreter on the CPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT

from iis.runtime import torch_rng
from IP_training import selection_kernel as module
from IP_training.selection_kernel import kept, plain, scaled_and_selected

RUN = """import sys, torch
from IP_training.selection_kernel import launch, works
assert works(torch.device("cpu"))
torch.save([launch(*case) for case in torch.load(sys.argv[1])], sys.argv[2])"""


def case_of(concepts, drops, rule, rows=5, heads_first=False):
    """Halves and quarters, of which many are equal, zero or negative, and whose products and sums are exact. Row 0 is
    all equal, row 1 all zero."""
    generator, heads = torch_rng("kernel", concepts), len(drops)
    z = torch.randint(-6, 7, ((heads, rows, concepts) if heads_first else (rows, concepts)), generator=generator) / 2
    z[..., 0, :], z[..., 1, :] = -1.5, 0.0
    scale_GM = torch.randint(-2, 3, (heads, concepts), generator=generator) / 2
    shift_GM = torch.randint(-1, 2, (heads, concepts), generator=generator) / 4
    scale_GM[0], shift_GM[0] = 1.0, 0.0
    return z, scale_GM, shift_GM, drops, rule


DROPPED = {1: (0, 0), 7: (0, 1, 6, 3), 64: (0, 1, 63), 200: (199, 0, 180, 1), 300: (150,), 1030: (1029, 500)}  # of M
CASES = {f"M = {concepts}, {rule}": case_of(concepts, drops, rule)
         for concepts, drops in DROPPED.items() for rule in ("mask", "strict")}
CASES["many rows"] = case_of(200, (100, 0), "mask", rows=83)
CASES["z of each head"] = case_of(7, (0, 1, 6, 3), "mask", heads_first=True)


def by_loops(z, scale_GM, shift_GM, dropped, rule):
    """x and K by Python's sort."""
    x_GBM = (z * scale_GM[:, None] + shift_GM[:, None]).contiguous()
    keep_GBM = torch.zeros(x_GBM.shape, dtype=torch.bool)
    for x_BM, keep_BM, count in zip(x_GBM, keep_GBM, dropped, strict=True):
        for row, keep in zip(x_BM.abs().tolist(), keep_BM, strict=True):
            order = sorted(range(len(row)), key=lambda place, row=row: -row[place])  # stable: lower index first
            threshold = sorted(row)[count]
            keep[[place for place in order[:len(row) - count] if rule == "mask" or row[place] > threshold]] = True
    return x_GBM * keep_GBM, keep_GBM


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What the kernel gives for every case. In a process of its own: Triton decides at its import who runs it."""
    folder = tmp_path_factory.mktemp("kernel")
    torch.save(list(CASES.values()), folder / "cases.pt")
    subprocess.run([sys.executable, "-c", RUN, folder / "cases.pt", folder / "x.pt"], cwd=ROOT, check=True, timeout=250,
                   env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    return dict(zip(CASES, torch.load(folder / "x.pt"), strict=True))


@pytest.mark.skipif(find_spec("triton") is None, reason="this build of torch comes without Triton")
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_keeps_what_a_plain_loop_keeps(launched, name):
    x_GBM, keep_GBM = by_loops(*CASES[name])
    assert torch.equal(launched[name], x_GBM) and torch.equal(kept(launched[name]), keep_GBM)


@pytest.mark.parametrize("name", CASES)
def test_the_twin_keeps_what_a_plain_loop_keeps(name):
    for dtype in (torch.float32, torch.float64):
        case = [part.to(dtype) if isinstance(part, torch.Tensor) else part for part in CASES[name]]
        x_GBM, keep_GBM = by_loops(*case)
        found = scaled_and_selected(*case)  # no GPU: the twin
        assert found.dtype == dtype and torch.equal(found, x_GBM) and torch.equal(kept(found), keep_GBM)


def test_zeros_that_stay_are_told_from_dropped_ones():
    """(0, −2, 0, 1): of two entries −2 and 1 stay, of three the first zero too, of four all."""
    z, ones, zeros = torch.tensor([[0.0, -2.0, 0.0, 1.0]]), torch.ones(3, 4), torch.zeros(3, 4)
    x = plain(z, ones, zeros, (2, 1, 0))
    assert x[:, 0].tolist() == [[0, -2, 0, 1]] * 3
    assert kept(x)[:, 0].int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


def test_wide_rows_and_double_precision_go_to_the_twin_and_a_kernel_that_fails_too(monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(module, "INTERPRETED", True)
    monkeypatch.setattr(module, "triton", module.triton or object())
    monkeypatch.setattr(module, "launch", refuse)
    module.works.cache_clear()
    assert not module.works(torch.device("cpu")) and "no compiler" in capsys.readouterr().err
    z, scale_GM, shift_GM, *rest = CASES["M = 7, mask"]
    assert torch.equal(scaled_and_selected(z, scale_GM, shift_GM, *rest), by_loops(z, scale_GM, shift_GM, *rest)[0])
    monkeypatch.setattr(module, "launch", lambda z, scale, *_: torch.full((len(scale), *z.shape[-2:]), 5.0))
    module.works.cache_clear()
    assert not module.works(torch.device("cpu"))  # wrong numbers
    module.works.cache_clear()
    monkeypatch.setattr(module, "works", lambda device: True)
    assert (scaled_and_selected(z, scale_GM, shift_GM, *rest) == 5).all()
    wide = torch.ones(1, 4097), torch.ones(1, 4097), torch.zeros(1, 4097)
    double = z.double(), scale_GM.double(), shift_GM.double()
    assert kept(scaled_and_selected(*wide, (97,))).sum() == 4000 and scaled_and_selected(*double, *rest).max() < 5
