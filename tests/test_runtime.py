from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skmkd._runtime import (
    available_memory,
    draw_seed,
    forked_rng,
    plain_arithmetic,
    portable_state,
    private_generator,
    resolve_device,
    resolve_precision,
    restored_device,
)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    best = resolve_device("auto")
    assert torch.zeros(1, device=best).device.type == best.type


@pytest.mark.parametrize("device", ["abacus", "cpu:x", "meta", "hpu"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"device must be 'auto' or .* got '{device}'"):
        resolve_device(device)


def test_absent_device_falls_back_on_load_only():
    absent = torch.device("cuda", torch.cuda.device_count())
    with pytest.raises(ValueError, match="device must be"):
        resolve_device(str(absent))
    assert restored_device(absent) == resolve_device("auto")
    assert restored_device(torch.device("cpu")) == torch.device("cpu")


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
