from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from skmkd._backend import (
    draw_seed,
    forked_rng,
    plain_arithmetic,
    portable_state,
    private_generator,
    resolve_device,
    restored_device,
)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    best = resolve_device("auto")
    assert torch.zeros(1, device=best).device.type == best.type


@pytest.mark.parametrize("device", ["abacus", "cpu:x", "meta"])
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
