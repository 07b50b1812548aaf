"""What the ``Cuda`` protocol promises, for every binding that works on this GPU. Never run yet."""

from __future__ import annotations

import re

import numpy as np
import pytest

from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.errors import DeviceError, StickyDeviceError

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def test_the_gpu_is_described(cuda: Cuda) -> None:
    assert cuda.device_name()
    assert re.fullmatch(r"\d+\.\d", cuda.compute_capability())
    assert re.fullmatch(r"\d+\.\d", cuda.version())
    assert cuda.free_memory() > 0


def test_bytes_travel_both_ways(cuda: Cuda) -> None:
    sent = np.random.default_rng(0).integers(0, 256, 5 * MIB + 3, dtype=np.uint8)
    address = cuda.allocate(sent.nbytes)
    try:
        cuda.upload(address, sent)
        back = np.zeros_like(sent)
        cuda.download(back, address)
    finally:
        cuda.free(address)
    np.testing.assert_array_equal(back, sent)


def test_memory_is_taken_and_given_back(cuda: Cuda) -> None:
    before = cuda.free_memory()
    address = cuda.allocate(256 * MIB)
    taken = before - cuda.free_memory()
    cuda.free(address)
    # Other programs may take or give some meanwhile.
    assert taken >= 128 * MIB
    assert cuda.free_memory() >= before - 128 * MIB


def test_more_memory_than_there_is(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match="out of memory") as caught:
        cuda.allocate(1 << 50)
    assert not isinstance(caught.value, StickyDeviceError)
    cuda.free(cuda.allocate(MIB))


def test_events_and_an_empty_graph(cuda: Cuda) -> None:
    stream, events = cuda.stream(), [cuda.event() for _ in range(3)]
    try:
        cuda.record(events[0], stream)
        cuda.record(events[1], stream)
        if cuda.no_graphs is None:
            cuda.begin_capture(stream)
            graph = cuda.end_capture(stream)
            cuda.launch_graph(graph, stream)
            cuda.wait(stream)
            cuda.destroy_graph(graph)
        cuda.record(events[2], stream)
        cuda.wait(stream)
        assert 0 <= cuda.elapsed_ms(*events[:2]) < 10
        assert cuda.elapsed_ms(events[0], events[2]) >= cuda.elapsed_ms(*events[:2])
    finally:
        for event in events:
            cuda.destroy_event(event)
        cuda.destroy_stream(stream)


def test_work_of_torch_and_ours_share_a_context(cuda: Cuda) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    tensor = torch.arange(1000, dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    read = np.zeros(1000, np.float32)
    cuda.download(read, tensor.data_ptr())
    np.testing.assert_array_equal(read, np.arange(1000))
