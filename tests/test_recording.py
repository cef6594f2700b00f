from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import needs_cuda

from skmkd._recording import (
    FEW_PIXELS,
    WARM_UP,
    Recording,
    Replayed,
    side_stream,
    waits,
)  # fmt: skip


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


def test_what_cannot_be_recorded_is_computed_and_tried_again_later(monkeypatch):
    tried = []

    def fail(*arguments):
        tried.append(arguments)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("skmkd._recording.Recording", fail)
    replayed = Replayed()
    for i in range(2 * WARM_UP + 2):
        assert replayed(torch.neg, torch.full((2,), float(i))).tolist() == [-i, -i]
    assert len(tried) == 2


def test_each_thread_has_a_stream_to_record_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    device = torch.device("cuda", 9)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(side_stream, device).result()
        assert thread.submit(side_stream, device).result() is other
    assert side_stream(device) is side_stream(device)
    assert side_stream(device) is not other


@pytest.mark.gpu
@needs_cuda
def test_few_images_make_a_gpu_wait():
    side = int(FEW_PIXELS**0.5)
    assert waits(torch.zeros(1, 3, side, side, device="cuda"))
    assert not waits(torch.zeros(2, 3, side, side, device="cuda"))


@pytest.mark.gpu
@needs_cuda
def test_a_recording_computes_without_the_function():
    calls = []

    def compute(inputs):
        calls.append(inputs)
        return {"sum": inputs["a"] + inputs["b"], "nothing": None}

    inputs = {"a": torch.ones(3, device="cuda"), "b": torch.ones(3, device="cuda")}
    recording = Recording(compute, inputs)
    assert len(calls) == 1
    for value in (1.0, 5.0):
        found = recording({"a": torch.full((3,), value, device="cuda"), "b": inputs["b"]})
        assert found["sum"].tolist() == [value + 1] * 3
        assert found["nothing"] is None
    assert len(calls) == 1


@pytest.mark.gpu
@needs_cuda
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


@pytest.mark.gpu
@needs_cuda
def test_threads_record_different_computations_in_turn():
    """Before a recording, torch waits for the whole GPU, which another recording forbids."""
    weights = [
        torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)).cuda()
        for seed in range(8)
    ]

    def run(weight):
        replayed = Replayed()
        rows = torch.eye(64, device="cuda")
        found = [replayed(lambda x: ((x @ weight) @ weight.T).relu(), rows) for _ in range(8)]
        assert replayed._recording is not None
        return found

    with ThreadPoolExecutor(8) as pool:
        every = list(pool.map(run, weights * 4))
    for found, weight in zip(every, weights * 4, strict=True):
        for each in found:
            torch.testing.assert_close(each, found[0], rtol=0, atol=0)
        torch.testing.assert_close(found[0], (weight @ weight.T).relu(), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@needs_cuda
def test_without_memory_for_a_recording_it_is_computed_all_the_same():
    replayed, before = Replayed(), torch.cuda.current_stream()

    def run():
        return replayed(lambda x: x.repeat(2**24), torch.ones(1, device="cuda"))  # 64 MB

    for _ in range(WARM_UP):
        assert run().sum() == 2**24
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**25) / total)
    try:
        assert run().sum() == 2**24
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert replayed._recording is None
    assert torch.cuda.current_stream() == before
    for _ in range(WARM_UP + 2):
        assert run().sum() == 2**24
    assert replayed._recording is not None


@pytest.mark.gpu
@needs_cuda
def test_recordings_of_a_thread_share_the_memory_of_libraries():
    kept, used = [], []
    for _ in range(6):
        replayed, weight = Replayed(), torch.randn(512, 512, device="cuda")
        for _ in range(WARM_UP + 2):
            replayed(lambda x, w=weight: x @ w, torch.ones(8, 512, device="cuda"))
        kept.append(replayed)
        used.append(torch.cuda.memory_allocated())
    assert used[-1] - used[1] < 2**25  # a workspace of cuBLAS has that much on some GPUs
