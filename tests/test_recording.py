from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from skmkd._recording import FEW_PIXELS, WARM_UP, Recording, Replayed, waits

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_a_cpu_never_waits():
    assert not waits(torch.zeros(1, 3, 8, 8))


def test_the_first_runs_are_computed():
    seen = []

    def double(tensor):
        seen.append(tensor)
        return 2 * tensor

    replayed = Replayed()
    for _ in range(WARM_UP):
        assert torch.equal(replayed(double, torch.ones(2)), torch.full((2,), 2.0))
    assert len(seen) == WARM_UP


@pytest.mark.gpu
@needs_gpu
def test_few_images_make_a_gpu_wait():
    side = int(FEW_PIXELS**0.5)
    assert waits(torch.zeros(1, 3, side, side, device="cuda"))
    assert not waits(torch.zeros(2, 3, side, side, device="cuda"))


@pytest.mark.gpu
@needs_gpu
def test_a_recording_computes_without_the_function():
    calls = []

    def compute(inputs):
        calls.append(inputs)
        return {"sum": inputs["a"] + inputs["b"], "nothing": None}

    inputs = {"a": torch.ones(3, device="cuda"), "b": torch.ones(3, device="cuda")}
    recording = Recording(compute, inputs, torch.cuda.Stream())
    assert len(calls) == 1
    for value in (1.0, 5.0):
        found = recording({"a": torch.full((3,), value, device="cuda"), "b": inputs["b"]})
        assert found["sum"].tolist() == [value + 1] * 3
        assert found["nothing"] is None
    assert len(calls) == 1


@pytest.mark.gpu
@needs_gpu
def test_threads_replay_in_turn():
    replayed = Replayed()
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).cuda()

    def run(value):
        return replayed(lambda x: x @ weight, torch.full((64, 64), value, device="cuda"))

    values = [float(value) for value in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, values))
    for value, output in zip(values, found, strict=True):
        torch.testing.assert_close(
            output, value * weight.sum(0).expand(64, -1), rtol=1e-3, atol=1e-3
        )
