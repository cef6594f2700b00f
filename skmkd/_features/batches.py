"""What the source sees in images: computed in batches of one size, or recalled from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, fx, nn

from skmkd._images.checks import Images
from skmkd._images.preparation import Preprocessing
from skmkd._maps.discrepancy import Features
from skmkd._runtime import plain_arithmetic

# Pixels of a batch. On a CPU in float32 that is two images of 128 x 128, enough for its speed; in
# bfloat16 more, since weights are brought in order at each call and the rest is faster.
BATCH_PIXELS = {
    ("cpu", "float32"): 2**15,
    ("cpu", "bfloat16"): 2**17,
}
ACCELERATOR_PIXELS = 2**20


class Batch:
    """Images, and what the source sees in them: computed or looked up when first asked for.

    Parameters
    ----------
    images : Tensor of shape (n, 3, H, W), float32
        What the networks take, on their device.
    look : callable
        Gives the source's activations for these images.
    """

    def __init__(self, images: Tensor, look: Callable[[], Features]) -> None:
        self.images = images
        self._look = look

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def target(self) -> Features:
        """The source's activations at the critical layers."""
        return self._look()

    def padded(self, n: int) -> Batch:
        """Repeat the last image until there are n."""
        if len(self) == n:
            return self

        def look() -> Features:
            return {layer: _padded(activations, n) for layer, activations in self.target.items()}

        return Batch(_padded(self.images, n), look)


Read = Callable[[Iterable[Sequence[int]]], Iterator[Batch]]  # batches by their indices


def batch_size(size: tuple[int, int], device: torch.device, precision: str) -> int:
    """Return how many images of a size the networks see at once when they do not train.

    With every batch of one size, a score does not depend on how many images came with it.
    """
    pixels = BATCH_PIXELS.get((device.type, precision), ACCELERATOR_PIXELS)
    return max(1, pixels // (size[0] * size[1]))


@dataclass(frozen=True)
class Observer:
    """Prepare images, and show them to the source in batches of one size.

    Parameters
    ----------
    prepare : Preprocessing
        Images (H, W, C) to a tensor (n, 3, height, width).
    look : callable
        Gives the source's activations for a tensor of images: the source, or its `Recall`.
    device : torch.device
        Where the source is.
    batch_size : int
        Images that the source sees at once.
    """

    prepare: Preprocessing
    look: Callable[[Tensor], Features]
    device: torch.device
    batch_size: int

    def __call__(self, images: Images, batches: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Return batches of images; while one is at work, the next is read."""
        return map(self.batch, map(self.tensor, read_ahead(images, batches)))

    def tensor(self, images: Sequence[np.ndarray]) -> Tensor:
        """Prepare images (H, W, C) and put them on the device."""
        with plain_arithmetic(False, self.device):
            return self.prepare(images).to(self.device, memory_format=torch.channels_last)

    def batch(self, images: Tensor) -> Batch:
        """Return prepared images, which the source will see when it has to."""
        return Batch(images, partial(self.features, images))

    def features(self, images: Tensor) -> Features:
        """Show any number of prepared images to the source."""
        with plain_arithmetic(False, self.device):
            parts = [self._features(part) for part in images.split(self.batch_size)]
            if len(parts) == 1:
                return parts[0]
            return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

    def _features(self, images: Tensor) -> Features:
        seen = self.look(_padded(images, self.batch_size))
        return {layer: activations[: len(images)] for layer, activations in seen.items()}


def read_ahead(images: Images, batches: Iterable[Sequence[int]]) -> Iterator[Sequence[np.ndarray]]:
    """Yield the images of each batch; a thread reads those of the next meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead = (thread.submit(images.__getitem__, indices) for indices in batches)
        reading = next(ahead, None)
        while reading is not None:
            read = reading.result()
            reading = next(ahead, None)
            yield read


def fixed_batches(
    read: Read, indices: Sequence[int], size: int
) -> Iterator[tuple[Sequence[int], Batch]]:
    """Yield indices and their images in order, the last batch padded to the common size."""
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    for chosen, batch in zip(batches, read(batches), strict=True):
        yield chosen, batch.padded(size)


def _padded(tensor: Tensor, n: int) -> Tensor:
    if len(tensor) == n:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(n - len(tensor), -1, -1, -1)])


class Recall:
    """A source that stores what it has seen: an entry for each batch of images and layer.

    Parameters
    ----------
    source : nn.Module
        The source.
    keys : dict of str to str
        Its layers' keys.
    memory : joblib.Memory
        The store.
    conditions : str
        What else activations depend on, such as the precision.
    """

    def __init__(
        self, source: nn.Module, keys: dict[str, str], memory: joblib.Memory, conditions: str
    ) -> None:
        self._source = source
        self._keys = {layer: f"{key} {conditions}" for layer, key in keys.items()}
        self._recall = memory.cache(_activations, ignore=["see", "layer"])

    def __call__(self, images: Tensor) -> Features:
        """Return the activations at every layer; what is missing is computed in one pass."""
        pixels = joblib.hash(_as_array(images))
        see = cache(lambda: self._source(images))
        return {
            layer: _as_tensor(self._recall(pixels, key, see, layer)).to(images.device)
            for layer, key in self._keys.items()
        }


def _activations(pixels: str, key: str, see: Callable[[], Features], layer: str) -> np.ndarray:
    return _as_array(see()[layer])


def _as_array(activations: Tensor) -> np.ndarray:  # (n, C, h, w) -> (n, h, w, C)
    """Return an array that numpy can hold: bfloat16 as uint16."""
    rows = activations.permute(0, 2, 3, 1).contiguous().cpu()
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _as_tensor(array: np.ndarray) -> Tensor:  # (n, h, w, C) -> (n, C, h, w)
    rows = torch.from_numpy(np.require(array, requirements="W"))
    return (rows.view(torch.bfloat16) if rows.dtype == torch.uint16 else rows).permute(0, 3, 1, 2)


def layer_keys(source: nn.Module) -> dict[str, str]:
    """Return a hash for each layer of a source: of the operations and weights that lead to it.

    A layer has the same key in any source that computes it alike, whatever else that gives.
    """
    graph_module = next(m for m in source.modules() if isinstance(m, fx.GraphModule))
    keys: dict[fx.Node, str] = {}
    for node in graph_module.graph.nodes:
        arguments = fx.node.map_arg((node.args, node.kwargs), keys.__getitem__)
        if node.op == "output":
            return dict(arguments[0][0])
        keys[node] = joblib.hash((node.op, str(arguments), _operation(graph_module, node)))
    raise AssertionError("a graph ends with its output")


def _operation(graph_module: fx.GraphModule, node: fx.Node) -> Any:
    """Describe what a node does, by what does not change from process to process."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        settings = [(type(m).__qualname__, _settings(m)) for m in module.modules()]
        return settings, {name: _plain(t) for name, t in module.state_dict().items()}
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        value = getattr(graph_module.get_submodule(path), name)
        return _plain(value) if isinstance(value, Tensor) else repr(value)
    if node.op == "placeholder":
        return node.op
    return getattr(node.target, "__name__", str(node.target))


def _settings(module: nn.Module) -> list[tuple[str, str]]:
    """List the attributes that a module was built with; its repr need not show them all."""
    return sorted(
        (name, repr(value))
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, tuple, list, torch.dtype, type(None)))
    )


def _plain(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers: joblib's hash of a tensor is not the same every time."""
    tensor = tensor.detach().cpu()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
