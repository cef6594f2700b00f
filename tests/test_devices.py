"""Where tensors are computed on a machine with GPUs, with tensors that have no values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, TinySource, tiny_detector
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skmkd import MemKDDetector
from skmkd._features.batches import Batch
from skmkd._images.registration import Template
from skmkd._maps.finishing import _gaussian, localization_maps, resize_maps
from skmkd._maps.usual import Usual

GPU = torch.device("cuda:1")  # not the one that a new thread computes on


class NoFloat64(TorchDispatchMode):
    """Allow no float64 on a GPU: MPS has none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                assert leaf.device.type == "cpu" or leaf.dtype != torch.float64, function
        return output


@pytest.fixture
def fakes():
    """Compute with fake tensors, which have a device, a shape and a type, but no values."""
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        yield
    _gaussian.cache_clear()


def moved(network):
    """Give a network tensors on the GPU."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    new = torch.empty_like(tensor, device=GPU, requires_grad=False)
                    learns = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(new, tensor.requires_grad) if learns else new


@pytest.fixture(params=["MKD", "MemKD"])
def detector(request, images):
    """A detector that was fitted on the CPU."""
    if request.param == "MKD":
        return tiny_detector(device="cpu").fit(images)
    return MemKDDetector(**TINY | {"source": TinySource(), "device": "cpu"}).fit(images)


@pytest.mark.parametrize("standardized", [False, True])
def test_scores_and_maps_never_leave_the_gpu(detector, fakes, standardized):
    size, inside = detector._prepare.size, None
    detector.device_, detector._folded = GPU, False  # folding copies, which fakes cannot
    if standardized:
        detector._usual = Usual(torch.zeros(size), torch.ones(size))
        inside = torch.ones(4, *size, dtype=torch.bool, device=GPU)
    for network in (detector.source_, detector.cloner_):
        moved(network)
    images = torch.rand(4, 3, *size, device=GPU)
    with torch.no_grad():
        batch = Batch(images, detector.source_(images))
        anomaly, maps = detector._judge(batch, True, True, None, inside)
        finished = resize_maps(localization_maps(maps, 4.0, 4), (20, 24))
    losses = detector._loss_terms(batch)
    found = [anomaly, maps, finished, *batch.target.values(), *losses.values()]
    assert {tensor.device for tensor in found} == {GPU}


def test_what_objects_are_moved_by_goes_to_the_gpu(fakes):
    template = Template(np.zeros((16, 16), np.float32))
    poses, maps = np.zeros((2, 3)), torch.ones(2, 16, 16, device=GPU)
    for moved_maps in (
        template.returned(maps, poses),
        template.covered(maps > 0, poses),
        template.registered(maps[:, None], poses),
    ):
        assert moved_maps.device == GPU
