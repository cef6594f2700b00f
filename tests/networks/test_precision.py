from __future__ import annotations

import copy

import pytest
import torch
from conftest import needs_bfloat16
from torch import nn

from skmkd._networks import precision
from skmkd._networks.precision import BFloat16


@pytest.fixture(params=[True, False])
def native(request, monkeypatch):
    """Pretend that the hardware has instructions for bfloat16, or has none."""
    monkeypatch.setattr(precision, "is_native", lambda _: request.param)


@pytest.mark.usefixtures("native")
def test_bfloat16_rounds_only_products_and_stores_their_weights():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    network.eval().requires_grad_(False)
    images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    lowered = BFloat16(network)
    for mode in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            got = lowered(images)
        assert got.dtype == torch.bfloat16
        distance = (got.float() - expected).norm() / expected.norm()
        assert 0 < distance < 0.01
    assert network[0].weight.dtype == network[3].bias.dtype == torch.bfloat16
    assert network[1].weight.dtype == torch.float32


LAYERS = pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(64, 32, 3), (4, 64, 9, 9)),
        (nn.ConvTranspose2d(64, 32, 3), (4, 64, 9, 9)),
        (nn.Linear(576, 32), (200, 576)),
    ],
)


@LAYERS
def test_emulated_products_round_factors_and_results(layer, shape, monkeypatch):
    monkeypatch.setattr(precision, "is_native", lambda _: False)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = BFloat16(copy.deepcopy(layer))(images)
        exact = copy.deepcopy(layer).bfloat16().double()(images.bfloat16().double())
    assert found.dtype == torch.bfloat16
    assert (found == exact.bfloat16()).float().mean() > 0.99


@needs_bfloat16
@LAYERS
def test_emulated_products_match_native_bfloat16(layer, shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.requires_grad_(False).parameters():
        parameter.normal_(generator=generator)
    images = torch.randn(shape, generator=generator)
    plain = layer(images).to(torch.bfloat16)
    outputs, gradients = {}, {}
    for native in (True, False):
        monkeypatch.setattr(precision, "is_native", lambda _, native=native: native)
        outputs[native] = BFloat16(layer)(images.requires_grad_())
        (gradients[native],) = torch.autograd.grad(outputs[native].float().sum(), images)
    equal = (outputs[False] == outputs[True]).float().mean()
    assert equal > 0.99  # another order of the sums changes the last bit of a few
    assert (plain == outputs[True]).float().mean() < 0.9
    distance = (gradients[False] - gradients[True]).norm() / gradients[True].norm()
    assert distance < 0.01
