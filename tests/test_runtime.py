from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_bfloat16, tiny_detector
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skmkd._networks.precision import is_native
from skmkd._runtime import (
    available_memory,
    draw_seed,
    forked_rng,
    gpu_memory,
    one_behind,
    plain_arithmetic,
    portable_state,
    private_generator,
    resolve_device,
    resolve_precision,
    restored_device,
    sent,
    uninterrupted,
    uninterrupted_steps,
)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda:1"), (True, True, "cuda:1")],
)
def test_the_best_device_is_an_accelerator_that_is_there(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(best)
    assert resolve_device("cpu") == torch.device("cpu")  # whatever else is there
    assert restored_device(torch.device("cpu"), "auto") == torch.device("cpu")
    assert restored_device(torch.device("hpu"), "hpu") == torch.device(best)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists devices as files")
def test_the_best_device_is_one_that_the_system_lists():
    usable = Path("/dev/nvidiactl").exists() and torch.version.cuda is not None
    assert resolve_device("auto").type == ("cuda" if usable else "cpu")
    assert torch.zeros(1, device=resolve_device("auto")).device.type == resolve_device("auto").type


@pytest.mark.parametrize("device", ["abacus", "cpu:x", "meta", "hpu"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"device must be 'auto' or .* got '{device}'"):
        resolve_device(device)


def test_absent_device_falls_back_on_load_only():
    absent = torch.device("cuda", torch.cuda.device_count())
    with pytest.raises(ValueError, match="device must be"):
        resolve_device(str(absent))
    assert restored_device(absent, str(absent)) == resolve_device("auto")
    assert restored_device(torch.device("cpu"), "cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("named", "expected"), [("cuda:3", "cuda:3"), ("cuda", "cuda"), ("auto", "cuda")]
)
def test_only_a_number_that_was_named_is_that_of_another_process(monkeypatch, named, expected):
    monkeypatch.setattr("skmkd._runtime.resolve_device", lambda device: device)
    assert restored_device(torch.device("cuda:3"), named) == expected


def test_devices_have_the_number_that_tensors_have(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "item", lambda _: 1.0)  # fake tensors have no values
    with FakeTensorMode():
        assert [resolve_device(name) for name in ("cuda:2", "cuda", "cpu")] == [
            torch.device(name) for name in ("cuda:2", "cuda:0", "cpu")
        ]


def test_seeds():
    assert draw_seed(3) == draw_seed(3) != draw_seed(4)
    state = np.random.RandomState(0)
    assert draw_seed(state) != draw_seed(state)
    before = np.random.get_state()[1].copy()
    assert draw_seed(None) != draw_seed(None)
    assert (np.random.get_state()[1] == before).all()


def test_generators_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    private_generator(0)
    with forked_rng(7):
        first = nn.Linear(3, 3).weight
    with forked_rng(7):
        assert torch.equal(first, nn.Linear(3, 3).weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_generators_are_lent_to_one_thread_at_a_time():
    before = torch.get_rng_state()

    def draw():
        with forked_rng(7):
            return torch.rand(3)

    with ThreadPoolExecutor(1) as thread:
        with forked_rng(7):
            first = torch.rand(1)
            waiting = thread.submit(draw)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            rest = torch.rand(2)
        assert torch.equal(waiting.result(), torch.cat([first, rest]))
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_arithmetic_ignores_the_caller_s_default_device():
    with torch.device("meta"), plain_arithmetic(False, torch.device("cpu")):
        assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("gradients", [True, False])
def test_plain_arithmetic_whatever_the_caller_is_in(outer, gradients):
    with outer(), torch.autocast("cpu", torch.bfloat16):
        with plain_arithmetic(gradients, torch.device("cpu")):
            product = nn.Linear(2, 2)(torch.ones(1, 2))
            assert product.requires_grad is gradients
            assert product.dtype == torch.float32
            assert not product.is_inference()
        assert torch.is_grad_enabled() is (outer is torch.enable_grad)
        assert torch.is_inference_mode_enabled() is (outer is torch.inference_mode)
        assert torch.is_autocast_enabled("cpu")


def caused(error):
    """A foreign error that another one led to."""
    try:
        raise ValueError("weights cannot be read") from error
    except ValueError as led_to:
        return led_to


SHORTAGES = [
    torch.OutOfMemoryError("tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 GiB"),
    RuntimeError("unable to mmap 2 GiB from file: Cannot allocate memory (12)"),
    RuntimeError("can't start new thread (2 GiB)"),
    OSError(errno.ENOMEM, "Cannot allocate memory (2 GiB)"),
    MemoryError("Unable to allocate 2 GiB for an array"),
]


@pytest.mark.parametrize("in_main_thread", [True, False])
@pytest.mark.parametrize("error", [*SHORTAGES, caused(SHORTAGES[1])], ids=str)
def test_too_little_memory_is_a_memory_error_with_advice(error, in_main_thread):
    @uninterrupted
    def compute():
        raise error

    def both():
        with pytest.raises(MemoryError, match="Too little memory is free.*batch_size.*cache") as e:
            uninterrupted(compute)()  # advice is given once
        assert str(e.value).count("Lower") == 1
        assert str(error) in str(e.value)

    if in_main_thread:
        both()
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(both).result()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "no file")])
def test_other_errors_stay_as_they_are(error):
    @uninterrupted
    def compute():
        raise error

    with pytest.raises(type(error)) as caught:
        compute()
    assert caught.value is error


def test_a_call_computes_with_the_caller_s_threads():
    threads = torch.get_num_threads()
    try:
        for n in (1, 3, 2):
            torch.set_num_threads(n)
            assert uninterrupted(torch.get_num_threads)() == n
    finally:
        torch.set_num_threads(threads)


def test_plain_arithmetic_computes_on_the_gpu_that_is_named(monkeypatch):
    entered = []

    @contextmanager
    def noted(device):
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", noted)
    with plain_arithmetic(False, torch.device("cpu")):
        assert entered == []
    with plain_arithmetic(False, torch.device("cuda", 3)):
        assert entered == [torch.device("cuda", 3)]


def test_only_a_gpu_has_memory_of_its_own_and_is_sent_to():
    here = torch.arange(3.0)
    assert gpu_memory(torch.device("cpu")) == (0, 0)
    assert sent(here, torch.device("cpu")) is here
    assert sent(here, torch.device("meta")).device.type == "meta"


def test_one_behind_yields_an_item_when_the_next_is_made():
    made = []

    def items():
        for i in range(3):
            made.append(i)
            yield i

    seen = [(item, list(made)) for item in one_behind(items())]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    assert list(one_behind([])) == []


def test_steps_are_made_in_the_other_thread_and_closed_there():
    seen = []

    def steps():
        try:
            for _ in range(3):
                yield threading.get_ident()
        finally:
            seen.append(threading.get_ident())

    worker = uninterrupted(threading.get_ident)()
    assert list(uninterrupted_steps(steps())) == [worker] * 3
    started = uninterrupted_steps(steps())
    next(started)
    started.close()
    assert seen == [worker] * 2


def test_steps_say_what_to_do_without_memory():
    def steps():
        yield 1
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="Lower image_size .* none left"):
        list(uninterrupted_steps(steps()))


LACKING = (  # what torch says, in several versions
    "The operator 'aten::_upsample_bilinear2d_aa.out' is not currently implemented for the MPS "
    "device. If you want this op to be considered for addition please comment on ...",
    "The operator 'aten::_upsample_bilinear2d_aa.out' is not current implemented for the MPS "
    "device. If you want this op to be added in priority ...",
)


@pytest.mark.parametrize("words", LACKING)
def test_an_operator_that_mps_lacks_is_named_with_what_helps(images, monkeypatch, words):
    detector = tiny_detector().fit(images)

    def fail(*_):
        raise NotImplementedError(words)

    monkeypatch.setattr("skmkd._maps.finishing.resize_maps", fail)
    advice = r"aten::_upsample_bilinear2d_aa.out on MPS.*PYTORCH_ENABLE_MPS_FALLBACK=1.*'cpu'"
    with pytest.raises(NotImplementedError, match=advice) as caught:
        detector.localize(images)
    assert str(caught.value.__cause__) == words


def test_other_things_that_are_not_implemented_stay_as_they_are():
    error = NotImplementedError("The operator 'aten::x' needs a longer beard.")

    def fail():
        raise error

    with pytest.raises(NotImplementedError) as caught:
        uninterrupted(fail)()
    assert caught.value is error


def test_portable_state_leaves_alone_what_is_on_the_cpu():
    network = nn.Linear(1, 1)
    assert portable_state({"a": 1, "network": network}) == {"a": 1, "network": network}


def test_precision_is_as_named_or_what_the_hardware_computes_in(monkeypatch):
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    for name in ("float32", "bfloat16"):
        assert resolve_precision(name, cpu) == name
    for flags, expected in [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "avx2": True}, "float32"),
        ({}, "float32"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert resolve_precision("auto", cpu) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_precision("auto", cpu) == "float32"
    for capability, expected in [((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((7, 5), "float32")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert resolve_precision("auto", cuda) == expected
    assert resolve_precision("auto", mps) == "float32"


def processor_flags():
    """The instruction sets that Linux lists for an x86 processor."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux lists instructions there")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="older torch does not tell")
def test_auto_precision_is_that_of_the_processor():
    native = processor_flags() & {"avx512_bf16", "amx_bf16"}
    expected = "bfloat16" if native else "float32"
    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.fixture
def capabilities(monkeypatch):
    """Set what torch says of the processor."""
    is_native.cache_clear()

    def say(**found):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)

    yield say
    is_native.cache_clear()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param({"avx512_bf16": True}, "bfloat16", marks=needs_bfloat16),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
    ],
)  # fmt: skip
def test_detectors_have_the_precision_of_the_processor(capabilities, images, found, expected):
    capabilities(**found)
    detector = tiny_detector(precision="auto", device="cpu").fit(images)
    assert detector.precision_ == expected
    named = tiny_detector(precision=expected, device="cpu").fit(images)
    assert (detector.score_samples(images) == named.score_samples(images)).all()
    activations = detector.source_(torch.rand(1, 3, 16, 16)).values()
    assert {a.dtype for a in activations} == {getattr(torch, expected)}


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux says it there")
def test_available_memory_is_what_the_system_says():
    meminfo = Path("/proc/meminfo").read_text()
    total = int(re.search(r"MemTotal:\s+(\d+)", meminfo).group(1)) * 1024
    assert 0 < available_memory() < total


MEMINFO = {"/proc/meminfo": "MemTotal: 90 kB\nMemAvailable: 50 kB\n"}


def group(path, limit, used=300, idle=0):
    """What the system says of a control group."""
    return {
        f"{path}/memory.max": f"{limit}\n",
        f"{path}/memory.current": f"{used}\n",
        f"{path}/memory.stat": f"anon 5\ninactive_file {idle}\nactive_file 7\n",
    }


ROOT, INNER = {"/proc/self/cgroup": "0::/\n"}, {"/proc/self/cgroup": "1:cpu:/x\n0::/a/b\n"}
CG = "/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 50 * 1024),
        (MEMINFO | ROOT | group(CG, "max"), 50 * 1024),
        (MEMINFO | ROOT | group(CG, 900), 600),
        (MEMINFO | ROOT | group(CG, 900, idle=200), 800),
        (MEMINFO | ROOT | group(CG, 300, 900), 0),
        (MEMINFO | INNER | group(f"{CG}/a/b", "max") | group(f"{CG}/a", 900), 600),
        (MEMINFO | INNER | group(f"{CG}/a/b", 700) | group(f"{CG}/a", 900), 400),
        ({"/proc/meminfo": "MemTotal: 90 kB\n"}, 4000),
        ({}, 4000),
    ],
)
def test_available_memory_within_a_container_or_without_proc(monkeypatch, files, expected):
    def read_text(path):
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(
        os, "sysconf", {"SC_PHYS_PAGES": 80, "SC_PAGE_SIZE": 100}.__getitem__, raising=False
    )
    assert available_memory() == expected


def test_available_memory_where_nothing_tells(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert available_memory() == 2**31


# Forks

FORKS = """
import json, os, signal, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from joblib import Parallel, delayed
from conftest import TinySource, tiny_detector
import skmkd
from skmkd._runtime import forked_rng

warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork beside threads
images = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
path = os.path.join(sys.argv[1], "saved.skmkd")
results = {}

def forked(name, work):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(30)  # ends a child that hangs
        try:
            answer = "worked " + str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    results[name] = os.fdopen(reader).read()
    os.waitpid(child, 0)

def seeded():
    with forked_rng(0):
        return len(torch.rand(3))

def compute():
    detector = tiny_detector().fit(images)
    loaded = skmkd.load(path, source=TinySource()).calibrate(images, fpr=0.2)
    return len(detector.score_samples(images)) + len(loaded.localize(images))

def with_threads(n, work):
    torch.set_num_threads(n)
    return work()

torch.set_num_threads(1)
detector = tiny_detector().fit(images).save(path)
expected = detector.score_samples(images)
forked("one thread", compute)
holding = threading.Event()

def hold():
    with forked_rng(0):
        holding.set()
        time.sleep(0.5)

holder = threading.Thread(target=hold)
holder.start()
holding.wait()
forked("lock of another thread", seeded)
holder.join()
forked("before threads", lambda: with_threads(2, compute))

torch.set_num_threads(2)
large = torch.ones(600, 600)
large @ large  # starts torch's threads of this thread
forked("threads of torch", compute)
loaded = skmkd.load(path, source=TinySource())
forked("loaded before", lambda: len(loaded.score_samples(images)))
tiny_detector().fit(images).localize(images)
for i in range(2):
    detector.score_samples(images)
    forked(f"after computing {i}", compute)
forked("scores", lambda: bool((detector.score_samples(images) == expected).all()))
forked("one thread in the child", lambda: with_threads(1, compute))
with ThreadPoolExecutor(1) as thread:
    thread.submit(compute).result()
    thread.submit(forked, "in another thread", compute).result()
results["parent"] = bool((detector.score_samples(images) == expected).all())
for backend in ("loky", "multiprocessing"):
    with Parallel(2, backend=backend) as parallel:
        for score in parallel(delayed(detector.score_samples)(images) for _ in range(2)):
            results[backend] = bool(np.allclose(score, expected, rtol=1e-5))
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are spawned there")
def test_forked_processes_compute(tmp_path):
    folders = os.pathsep.join(str(folder) for folder in list(Path(__file__).parents)[:2])
    run = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": folders}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results.pop("lock of another thread") == "worked 3"
    assert results.pop("loaded before") == "worked 12"
    assert results.pop("scores") == "worked True"
    for name in ("parent", "loky", "multiprocessing"):
        assert results.pop(name), name
    assert len(results) == 7
    assert set(results.values()) == {"worked 24"}, results


OPENVINO_FORK = """
import os, signal, sys, warnings
from functools import partial

import numpy as np
import torch
from conftest import tiny_detector

warnings.simplefilter("ignore", DeprecationWarning)
images = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
torch.set_num_threads(2)
detector = tiny_detector(engine="openvino", device="cpu").fit(images)
sys.stdout.flush()
if os.fork() == 0:
    signal.alarm(60)
    calibrate = partial(detector.calibrate, fpr=0.2)
    for work in (detector.score_samples, detector.localize, detector.fit, calibrate):
        try:
            work(images)
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are spawned there")
def test_a_process_forked_from_openvino_says_what_to_do():
    pytest.importorskip("openvino")
    folders = os.pathsep.join(str(folder) for folder in list(Path(__file__).parents)[:2])
    run = subprocess.run(
        [sys.executable, "-c", OPENVINO_FORK], env=os.environ | {"PYTHONPATH": folders},
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert re.search(r"'spawn'.*'forkserver'.*'loky'.*set_num_threads\(1\)", line)
