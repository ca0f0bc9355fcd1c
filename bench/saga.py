"""One step of SAGA for the elastic-net layer: one product of matrices against one outer product per sample.

    python bench/saga.py                      # about a minute; writes bench/results/saga.json

The plain side keeps SAGA's table as it is defined, a gradient (C, M) per sample, and forms the gradients of a batch as
outer products; the fast side keeps residuals (IP_training/elastic_net.py). Both start at one state; before they are
timed they take a step each in float64, and must agree to 1e-6. The table is that of `--num_train` samples: it needs
4·N·C·M bytes, so a thousand or so stand for the set here; the step itself does not depend on N.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import bench_parser, paired, report, start
from iis.cli import ScriptParser, positive, run_script

LAM, ALPHA, SIZE = 7e-4, 0.99, 0.01


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "saga", pairs=9)
    script.add_argument("--num_train", type=positive, default=1024, help="N, the samples whose gradients are kept")
    script.add_argument("--batch_size", type=positive, default=256, help="B")
    script.add_argument("--num_concepts", type=positive, default=800, help="M")
    script.add_argument("--num_classes", type=positive, default=100, help="C")
    return script


def main(args: argparse.Namespace) -> None:
    """Check that both steps agree, then time them."""
    import torch

    start(args)
    check = sides_of(args, torch.float64)
    for _ in range(3):
        check[0].step(), check[1].step()
    error = max(float((plain - fast).abs().max()) for plain, fast in zip(check[0].result(), check[1].result(),
                                                                         strict=True))
    if error > 1e-6:
        raise SystemExit(f"the two steps differ by {error:.1e}")
    del check
    plain, fast = sides_of(args, torch.float32)
    result = paired(plain.step, fast.step, args.pairs)
    shape = f"SAGA step, {args.batch_size} x {args.num_concepts} -> {args.num_classes}"
    report(args, "python bench/saga.py", {shape: {**result, "difference": error}}, {shape: (50, 200)},
           "difference: the largest of W, b and mean gradients after three steps in float64")


def sides_of(args: argparse.Namespace, dtype: object) -> tuple["Plain", "Fast"]:
    """Both sides at one random state of SAGA."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x_NM = torch.randn(args.num_train, args.num_concepts, generator=generator, dtype=dtype)
    y_N = torch.randint(args.num_classes, (args.num_train,), generator=generator)
    rows = torch.randperm(args.num_train, generator=generator)[:args.batch_size]
    W_CM = 0.02 * torch.randn(args.num_classes, args.num_concepts, generator=generator, dtype=dtype)
    return Plain(x_NM, y_N, rows, W_CM), Fast(x_NM, y_N, rows, W_CM)


class Fast:
    """The suite's own step."""

    def __init__(self, x_NM: object, y_N: object, rows: object, W_CM: object) -> None:
        from IP_training.elastic_net import _start

        self.batch = x_NM[rows], y_N[rows], rows
        self.state = _start(x_NM, y_N, W_CM.clone(), W_CM.new_zeros(len(W_CM)))

    def step(self) -> None:
        self.state.step(*self.batch, SIZE, LAM, ALPHA)

    def result(self) -> tuple:
        return self.state.W_CM, self.state.b_C, self.state.mean_W_CM, self.state.mean_b_C


class Plain:
    """SAGA as it is defined: every sample's gradient is kept, and made as an outer product."""

    def __init__(self, x_NM: object, y_N: object, rows: object, W_CM: object) -> None:
        self.x_BM, self.y_B, self.rows = x_NM[rows], y_N[rows], rows
        self.W_CM, self.b_C = W_CM.clone(), W_CM.new_zeros(len(W_CM))
        self.table_NCM, self.table_NC = self.gradients(x_NM, y_N)
        self.mean_W_CM, self.mean_b_C = self.table_NCM.mean(0), self.table_NC.mean(0)

    def gradients(self, x_BM: object, y_B: object) -> tuple:
        """Of every sample, (B, C, M) and (B, C)."""
        import torch

        residual_BC = (x_BM @ self.W_CM.T + self.b_C).softmax(1) - torch.nn.functional.one_hot(y_B, len(self.W_CM))
        return residual_BC[:, :, None] * x_BM[:, None, :], residual_BC

    def step(self) -> None:
        fresh_BCM, fresh_BC = self.gradients(self.x_BM, self.y_B)
        change_W = (fresh_BCM - self.table_NCM[self.rows]).sum(0)
        change_b = (fresh_BC - self.table_NC[self.rows]).sum(0)
        W_CM = self.W_CM - SIZE * (change_W / len(self.rows) + self.mean_W_CM)
        self.b_C = self.b_C - SIZE * (change_b / len(self.rows) + self.mean_b_C)
        self.W_CM = W_CM.sign() * (W_CM.abs() - SIZE * LAM * ALPHA).clamp_min(0) / (1 + SIZE * LAM * (1 - ALPHA))
        self.mean_W_CM = self.mean_W_CM + change_W / len(self.table_NC)
        self.mean_b_C = self.mean_b_C + change_b / len(self.table_NC)
        self.table_NCM[self.rows], self.table_NC[self.rows] = fresh_BCM, fresh_BC

    def result(self) -> tuple:
        return self.W_CM, self.b_C, self.mean_W_CM, self.mean_b_C


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
