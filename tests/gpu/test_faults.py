"""A fault of the GPU ends one process and no other. Never run yet.

Each test makes its fault in a process of its own: the context of the one that runs pytest must
survive.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.gpu.conftest import Loader
from trt_layermerge.backends.cuda import Cuda

pytestmark = pytest.mark.gpu

# Writes to address 16, which nobody has.
PTX = """
.version 6.4
.target sm_75
.address_size 64
.visible .entry crash()
{
    .reg .u64 %p;
    .reg .u32 %v;
    mov.u64 %p, 16;
    mov.u32 %v, 1;
    st.global.u32 [%p], %v;
    ret;
}
"""

KERNEL = f"""
import ctypes, sys
from trt_layermerge.backends.cuda import find_cuda
from trt_layermerge.errors import StickyDeviceError

cuda = find_cuda(sys.argv[1])
cuda.free(cuda.allocate(8))
stream = cuda.stream()
driver = ctypes.CDLL("libcuda.so.1")
module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
assert driver.cuModuleLoadData(ctypes.byref(module), {PTX.encode()!r}) == 0
assert driver.cuModuleGetFunction(ctypes.byref(kernel), module, b"crash") == 0
grid = [ctypes.c_uint(1)] * 6
handle = ctypes.c_void_p(int(stream))
assert driver.cuLaunchKernel(kernel, *grid, ctypes.c_uint(0), handle, None, None) == 0
for call in (lambda: cuda.wait(stream), lambda: cuda.allocate(8), cuda.stream):
    try:
        call()
        print("nothing was raised")
    except StickyDeviceError as error:
        print("sticky:", error)
"""

ENGINE = """
import sys
from tests.gpu.conftest import SMALL, Loader
from trt_layermerge.backends.cuda import find_cuda
from trt_layermerge.backends.tensorrt_api import load_api
from trt_layermerge.errors import StickyDeviceError
from trt_layermerge.measure.spec_model import spec_model

loader = Loader(load_api(sys.argv[1]))
try:
    with loader.open(loader.build(spec_model(SMALL, "fp32", 1)), find_cuda()) as runner:
        runner._owned["context"].set_tensor_address("x", 4096)
        runner.time_burst(1)
    print("nothing was raised")
except StickyDeviceError as error:
    print("sticky:", error)
"""


def last_lines(code: str, argument: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, argument],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "sticky:" in done.stdout, done.stderr
    return done.stdout.splitlines()


def test_after_a_fault_every_call_says_so(cuda: Cuda) -> None:
    lines = last_lines(KERNEL, cuda.binding)
    assert len(lines) == 3
    assert all(line.startswith("sticky:") and "in a new one" in line for line in lines)
    cuda.free(cuda.allocate(8))  # this process is none the worse


def test_an_engine_that_faults_says_so_and_closes(loader: Loader) -> None:
    (line,) = last_lines(ENGINE, loader.api.flavor)
    assert line.startswith("sticky:")
