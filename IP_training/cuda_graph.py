"""A training step as a CUDA graph: captured once, then launched as a whole.

A step of the grid is some hundred small kernels; launched one by one, the host needs longer for them than the GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

WARM_UP = 3  # plain calls first: libraries load, kernels compile, the optimizer makes its state


class Captured:
    """`function(*tensors) -> tensor`, replayed as a graph for tensors on a GPU of the shapes of its first call.

    Other shapes (an epoch's last batch) run plainly, as does everything on a CPU, or where the capture fails, which one
    sentence on stderr says. The function must neither read a value on the host nor draw random numbers.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function, self.calls, self.graph = function, 0, None
        self.inputs: list[torch.Tensor] = []  # where the graph reads, and the shapes it is for
        self.output: torch.Tensor | None = None

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        if not self.inputs:
            self.inputs = [torch.empty_like(one) for one in tensors] if tensors[0].is_cuda else []
        if not self.inputs or [one.shape for one in tensors] != [one.shape for one in self.inputs]:
            return self.function(*tensors)
        self.calls += 1
        if self.calls > WARM_UP and self.graph is None:
            self.graph = self._capture()
        if not self.graph:  # still warming up, or False: it cannot be captured
            return self.function(*tensors)
        for place, one in zip(self.inputs, tensors, strict=True):
            place.copy_(one)
        with torch.cuda.device(self.inputs[0].device):  # a graph is launched on the current device
            self.graph.replay()
        return self.output

    def _capture(self) -> torch.cuda.CUDAGraph | bool:
        graph, device = torch.cuda.CUDAGraph(), self.inputs[0].device
        try:
            # On the tensors' own device, which need not be the current one; another thread may be reading meanwhile.
            with (torch.cuda.device(device),
                  torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local")):
                self.output = self.function(*self.inputs)
        except RuntimeError as error:
            print(f"cuda graph: {' '.join(str(error).split())[:160]}; steps are launched kernel by kernel",
                  file=sys.stderr)
            return False
        return graph
