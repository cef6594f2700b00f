"""Computations on a GPU that are recorded once, and then replayed as a whole.

They consist of hundreds of small operations. Launched one by one, these would leave the GPU idle
most of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from skmkd._locks import lock_that_forks

WARM_UP = 3  # runs before one is recorded, in which libraries choose and set up their kernels
RECORDING = lock_that_forks()  # torch waits for the whole GPU before, which breaks other recordings
FEW_PIXELS = 2**16  # of images: for more, a GPU computes longer than it takes to launch it


def waits(images: Tensor) -> bool:
    """Return whether images are so few, on a GPU, that it would wait for what is launched."""
    return images.is_cuda and images[:, 0].numel() <= FEW_PIXELS


class Recording:
    """What was recorded of a computation, for inputs of the same shapes.

    Parameters
    ----------
    compute : callable
        Tensors to tensors, with no value that the CPU needs to see in between. It has run in this
        thread, in which libraries set themselves up.
    inputs : Any
        Tensors, or containers of them, which are copied.
    """

    def __init__(self, compute: Callable[[Any], Any], inputs: Any) -> None:
        self._inputs = tree_map(torch.clone, inputs)
        stream = side_stream(tree_leaves(inputs)[0].device)
        self._graph = torch.cuda.CUDAGraph()
        # the outer context ends on the stream of before, also where the inner one fails to end
        with (
            RECORDING,
            torch.cuda.stream(stream),
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):  # what other threads compute goes on
            self._output = compute(self._inputs)

    def __call__(self, inputs: Any) -> Any:
        """Compute the output, which changes at the next call."""
        tree_map(Tensor.copy_, self._inputs, inputs)
        self._graph.replay()
        return self._output


def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which this thread records.

    It is always the same one, as libraries keep memory for each thread and stream.
    """
    return _side_stream(device, get_ident())


@cache
def _side_stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Replayed:
    """A computation that is recorded when it has run a few times; threads may share it."""

    def __init__(self) -> None:
        self._n_runs = 0
        self._recording: Recording | None = None
        self._lock = Lock()

    def __call__(self, compute: Callable[[Any], Any], inputs: Any) -> Any:
        """Compute the output for inputs of the same shapes as ever."""
        with self._lock:
            if self._recording is not None:
                return tree_map_only(Tensor, torch.clone, self._recording(inputs))
            output = compute(inputs)
            self._n_runs += 1
            if self._n_runs > WARM_UP:
                try:
                    self._recording = Recording(compute, inputs)
                except RuntimeError:  # too little memory, or the program waited for the whole GPU
                    self._n_runs = 0
            return output
