"""Where and how tensors are computed, without touching the caller's global state."""

from __future__ import annotations

import copy
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from errno import ENOMEM
from functools import partial, wraps
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from skmkd._interrupts import sheltered

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")
ENGINES = ("torch", "openvino")
BFLOAT16_CPU = ("avx512_bf16", "amx_bf16")  # instructions without which it is slower than float32
BFLOAT16_CUDA = (8, 0)  # the first capability that computes in it
CGROUPS = Path("/sys/fs/cgroup")
CACHE_SHARE = 0.25  # of the available memory, that a cache takes by default
UNKNOWN_MEMORY = 2**32  # bytes taken for a machine's where the system does not say
ADVICE = (
    "Too little memory is free. Lower image_size or batch_size, set cache to 0 to keep features on "
    "disk, or use device='cpu' if it is a GPU's."
)
MPS_ADVICE = (
    f"torch {torch.__version__} lacks the operator {{}} on MPS. Set the environment variable "
    "PYTORCH_ENABLE_MPS_FALLBACK=1 before torch is imported, and the CPU computes it; or use "
    "device='cpu'."
)
MPS_LACKS = re.compile(r"operator '(\S+)' is not current\w* implemented for the MPS device")
SHORTAGES = ("allocate memory", "out of memory", "bad_alloc", "start new thread")  # of torch's
Item = TypeVar("Item")
Value = TypeVar("Value")
Parameters = ParamSpec("Parameters")
GENERATORS = RLock()  # guards torch's global ones, which one thread at a time may seed and restore
_FORK = {"threads started": False, "forked since": False}


def _after_fork_in_child() -> None:
    global GENERATORS
    GENERATORS = RLock()  # another thread may have held it
    _FORK["forked since"] = _FORK["threads started"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def note_threads() -> None:
    """Note that a library has started threads that a forked process would wait for.

    OpenMP's are not of these: here, a thread that computes in a forked process is a new one, and
    has new ones.
    """
    if torch.get_num_threads() > 1:
        _FORK["threads started"] = True


def resolve_device(device: str) -> torch.device:
    """Return the torch device that a name stands for, "auto" being the fastest here.

    One of several GPUs has a number: "cuda" would be another one in another thread.

    Raises
    ------
    ValueError
        If torch does not know the device or cannot reach it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.ones(1, device=device)
        found.item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device must be 'auto' or a device that torch can use here; got {device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return found.device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the number format that a name stands for, "auto" being the fastest on the device."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BFLOAT16_CUDA
    if device.type == "cpu":
        capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch tells
        return any(capabilities.get(instruction) for instruction in BFLOAT16_CPU)
    return False


def available_memory() -> int:
    """Return the bytes of memory available to this process, within a Linux container's limits."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        free = 1024 * available
    except (OSError, ValueError):  # not Linux
        free = _physical_memory() // 2
    return max(0, min([free, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield the bytes left in each control group (version 2) of this process."""
    try:
        (path,) = re.findall(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return
    inner = CGROUPS / path
    for group in [inner, *inner.parents[: len(inner.parts) - len(CGROUPS.parts)]]:
        try:
            limit, used = (int((group / f"memory.{n}").read_text()) for n in ("max", "current"))
            content = (group / "memory.stat").read_text()
            (idle,) = re.findall(r"^inactive_file (\d+)$", content, re.MULTILINE)
        except (OSError, ValueError):  # no limit
            continue
        yield limit - used + int(idle)


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return UNKNOWN_MEMORY


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """Return the free and the total bytes of a GPU's own memory; none for other devices."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)


def current_stream(device: torch.device) -> Any:
    """Return the stream on which this thread computes on a GPU; None for other devices."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def follow(*streams: Any) -> None:
    """Have a new thread compute on streams, so that who waits on these has what it computes.

    A new thread has the GPUs' default streams, which no other stream waits for.
    """
    for stream in streams:
        if stream is not None:
            torch.cuda.set_stream(stream)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a GPU fetches it while the CPU goes on."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item once the next has been made, so that a device is busy while one is read."""
    previous: deque[Item] = deque()
    for item in items:
        previous.append(item)
        if len(previous) > 1:
            yield previous.popleft()
    yield from previous


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Draw one seed; ``None`` takes fresh entropy and leaves numpy's global generator alone."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31 - 1))


def private_generator(seed: int) -> torch.Generator:
    """Return a new generator on the CPU, for the same draws on every device."""
    return torch.Generator(CPU).manual_seed(seed)


@contextmanager
def forked_rng(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's global generators, which layers draw from, and restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with GENERATORS, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def plain_arithmetic(gradients: bool, device: torch.device) -> Iterator[None]:
    """Compute the same whatever modes, autocast, default device and GPU the caller has set.

    Raises
    ------
    RuntimeError
        With several threads, in a process that was forked from one in which OpenVINO has computed
        with several: these are not in the child, which would wait for them forever.
    """
    if _FORK["forked since"] and torch.get_num_threads() > 1:
        raise RuntimeError(
            "skmkd cannot compute in a process forked from one in which OpenVINO has computed with "
            "several threads; start processes with 'spawn' or 'forkserver', use joblib's 'loky', "
            "or call torch.set_num_threads(1) in the forked process."
        )
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False)
        if torch.amp.is_autocast_available(device.type)  # of MPS from torch 2.5
        else nullcontext(),
        nullcontext() if torch.get_default_device() == CPU else CPU,  # it costs each call
        torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
    ):
        yield


def uninterrupted(function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Make a function one that an interrupt cannot tear, and that says what to do without memory.

    It computes with the caller's number of threads, and on its stream of a GPU.

    Raises
    ------
    MemoryError
        If memory or threads run out.
    NotImplementedError
        If torch lacks an operator on MPS.
    """

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
        work = partial(_computed, partial(function, *args, **kwargs), torch.get_num_threads())
        try:
            return sheltered(partial(work, stream))
        except (MemoryError, RuntimeError, OSError, ValueError) as error:
            if is_shortage(error):
                raise MemoryError(f"{ADVICE} {error}") from error
            if isinstance(error, NotImplementedError) and (lacks := MPS_LACKS.search(str(error))):
                raise NotImplementedError(MPS_ADVICE.format(lacks[1])) from error
            raise

    return call


def uninterrupted_steps(steps: Generator[Value]) -> Iterator[Value]:
    """Yield what a generator does; each of its steps is `uninterrupted`, as the first one is."""
    end, n_threads = object(), torch.get_num_threads()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    step = uninterrupted(lambda: _computed(lambda: next(steps, end), n_threads, stream))
    try:
        while (item := step()) is not end:
            yield item  # type: ignore[misc]
    finally:
        sheltered(steps.close)


def _computed(work: Callable[[], Value], n_threads: int, stream: Any) -> Value:
    """Compute as another thread does."""
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)  # of this thread
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        return work()


def is_shortage(error: BaseException) -> bool:
    """Whether an error, or what led to it, is one of too little memory, not yet with advice."""
    if isinstance(error, MemoryError):
        return ADVICE not in str(error)
    if isinstance(error, torch.OutOfMemoryError) or getattr(error, "errno", None) == ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SHORTAGES):
        return True
    return error.__cause__ is not None and is_shortage(error.__cause__)


def portable_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an estimator's state with each network that is not on the CPU copied there."""

    def portable(value: Any) -> Any:
        if isinstance(value, nn.Module) and any(p.device.type != "cpu" for p in value.parameters()):
            return copy.deepcopy(value).cpu()
        return value

    return {name: portable(value) for name, value in state.items()}


def restored_device(device: torch.device, named: str) -> torch.device:
    """Return the device a fitted model was on, or the best one here if there is none such.

    It may be another of several GPUs unless the parameter `device` named one by its number.
    """
    try:
        return resolve_device(str(device) if ":" in named else device.type)
    except ValueError:
        return resolve_device("auto")
