"""Source features kept on disk, shared between fits, calls and processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, MutableMapping
from io import BytesIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import joblib
import numpy as np
import torch
from torch import Tensor, fx, nn

from skmkd._atomic import remove_leftovers, write_file
from skmkd._maps.discrepancy import Features
from skmkd._regular import read_regular
from skmkd._warnings import warn

LAYOUT = 2  # of the files; those of another are not looked for
CHECKSUM_BYTES = 16
KEYS: MutableMapping[nn.Module, dict[str, str]] = WeakKeyDictionary()  # of frozen sources


class FeatureStore:
    """A source that keeps its features in a folder: one ``.npy`` file per image and layer.

    A checksum follows the numbers of each file, of these and of what they are the features of. A
    file that is missing or damaged is computed and written again; of a damaged one, a warning
    tells. Files are written whole, so that several processes may share a folder.

    Parameters
    ----------
    folder : str or path
        The folder; it is created with the first file.
    source : nn.Module
        The source network.
    conditions : str
        What else features depend on, such as the precision.
    compute : callable, default=None
        Computes the source's features; None is the source itself.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        source: nn.Module,
        conditions: str,
        compute: Callable[[Tensor], Features] | None = None,
    ) -> None:
        self._compute = compute or source
        if source not in KEYS:
            KEYS[source] = layer_keys(source)
        self._folders = {
            layer: Path(folder) / joblib.hash(f"{LAYOUT} {key} {conditions}")
            for layer, key in KEYS[source].items()
        }
        self._writable = True
        self._told = False
        self._tidied: set[Path] = set()

    def __call__(self, images: Tensor) -> Features:  # (n, 3, H, W)
        """Return the features of every layer; images with missing files are computed together."""
        names = [joblib.hash(_as_array(image)) for image in images]
        found = {name: self._read(name) for name in dict.fromkeys(names)}
        missing = [name for name, rows in found.items() if len(rows) < len(self._folders)]
        if missing:
            computed = self._compute(images[[names.index(name) for name in missing]])
            for i, name in enumerate(missing):
                for layer in self._folders.keys() - found[name].keys():
                    found[name][layer] = row = _as_array(computed[layer][i])
                    self._write(self._folders[layer] / f"{name}.npy", row)
        return {
            layer: _as_tensor(np.stack([found[name][layer] for name in names])).to(images.device)
            for layer in self._folders
        }

    def _read(self, name: str) -> dict[str, np.ndarray]:
        """Return the stored features of an image, of those layers that can be read."""
        rows = {}
        for layer, folder in self._folders.items():
            path = folder / f"{name}.npy"
            try:
                rows[layer] = unpacked(read_regular(path), path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except Exception as error:  # those of a forged header are of many kinds
                self._tell(path, error)
        return rows

    def _tell(self, path: Path, error: Exception) -> None:
        """Warn of the first damaged file."""
        if not self._told:
            self._told = True
            warn(
                f"The feature store has a damaged file, {path} ({error}): what it held is computed "
                "and written again, as with any other that is damaged."
            )

    def _write(self, path: Path, row: np.ndarray) -> None:
        if not self._writable:
            return
        try:
            if path.parent not in self._tidied:
                path.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(path)
                self._tidied.add(path.parent)
            write_file(path, packed(row, path), durable=False)
        except IsADirectoryError:  # somebody's own, in the file's place
            return
        except OSError as error:
            self._writable = False
            warn(f"The feature store cannot be written, and features are computed: {error}.")


def packed(row: np.ndarray, path: Path) -> list[Any]:
    """Return the parts of a file: those of a ``.npy`` file, and a checksum."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(row))
    content = [header.getvalue(), row.data]
    return [*content, checksum(content, path)]


def unpacked(content: bytes, path: Path) -> np.ndarray:
    """Return the array that a file holds; nothing else is read of it, and no code.

    Raises
    ------
    ValueError
        If the file is not one that `packed` made for this path.
    """
    whole = memoryview(content)
    if checksum([whole[:-CHECKSUM_BYTES]], path) != whole[-CHECKSUM_BYTES:]:
        raise ValueError("its checksum does not match its content")
    file = BytesIO(content)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(whole[file.tell() : -CHECKSUM_BYTES], dtype).reshape(shape)


def checksum(parts: Iterable[Any], path: Path) -> bytes:
    """Return the checksum of a file's content and of its name, in its folder's."""
    digest = hashlib.blake2b(f"{path.parent.name}/{path.name}".encode(), digest_size=CHECKSUM_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _as_array(activations: Tensor) -> np.ndarray:  # (C, h, w) -> (h, w, C)
    """Return an array that numpy can store: bfloat16 as uint16."""
    rows = activations.permute(1, 2, 0).contiguous().cpu()
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _as_tensor(array: np.ndarray) -> Tensor:  # (n, h, w, C) -> (n, C, h, w)
    rows = torch.from_numpy(array)
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
