"""One code path for every version: flags taken where they exist, by name."""

import sys
from types import ModuleType

import pytest

from tests.backends.fake_tensorrt import fake_tensorrt
from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import TensorRTApi, load_api
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)


def api(version):
    return TensorRTApi(fake_tensorrt(version), "tensorrt")


@pytest.mark.parametrize(
    ("version", "bits", "model", "precision", "flags", "typing"),
    [
        ("8.6.2", 0b01, b"conv", "fp32", set(), "weak"),
        ("8.6.2", 0b01, b"conv half", "fp16", {"FP16"}, "weak FP16"),
        ("8.6.2", 0b01, b"conv half int8", "int8", {"INT8", "FP16"}, "weak INT8 FP16"),
        ("10.3.0", 0b11, b"conv", "fp32", set(), "strong"),
        ("10.3.0", 0b11, b"conv half", "fp16", set(), "strong"),
        ("11.1.0", 0b10, b"conv half", "fp16", set(), "strong"),
        ("11.1.0", 0b10, b"conv half int8", "int8", set(), "strong"),
    ],
)
def test_flags_by_version(version, bits, model, precision, flags, typing):
    library = api(version)
    build = build_engine(model, precision, api=library, workspace_bytes=1 << 20)
    [(network_flags, config)] = library.module.built
    assert network_flags == bits
    assert config.flags == flags
    assert config.pools == {library.module.MemoryPoolType.WORKSPACE: 1 << 20}
    assert build.settings == {
        "typing": typing,
        "tf32": True,
        "compute_capability": "the GPU at hand",
    }
    assert (build.plan, build.version, build.precision) == (b"an engine", version, precision)
    assert build.log == ("WARNING: a warning",)


def test_parser_errors_without_names_give_the_index():
    with pytest.raises(UnsupportedModelError, match="INVALID_NODE at node 4: no importer"):
        build_engine(b"odd", api=api("8.6.2"))


@pytest.mark.parametrize("version", ["10.3.0", "11.1.0"])
def test_parser_errors_with_names(version):
    with pytest.raises(UnsupportedModelError, match=r"at node 'layer4' \(Odd\): no importer"):
        build_engine(b"odd", api=api(version))


def test_failed_build_carries_the_log():
    with pytest.raises(DeviceError, match="Could not find any implementation for node conv1"):
        build_engine(b"conv unbuildable", api=api("10.3.0"))


def test_builder_without_a_gpu_says_so():
    library = api("10.3.0")
    library.module.no_gpu = True
    with pytest.raises(DeviceError, match=r"cannot start a builder: .*error: 35.*nvidia-smi"):
        build_engine(b"conv", api=library)


def test_profile_reaches_the_builder_and_is_checked():
    shapes = ((1, 2, 3, 3), (4, 2, 3, 3), (8, 2, 3, 3))
    library = api("10.3.0")
    build_engine(b"dynamic", api=library, profile={"input": shapes})
    assert library.module.built[0][1].profiles == [{"input": shapes}]
    with pytest.raises(UsageError, match="do not fit"):
        build_engine(b"dynamic", api=api("10.3.0"), profile={"input": shapes[::-1]})
    with pytest.raises(UsageError, match=r"names \['other'\], but the inputs are \['input'\]"):
        build_engine(b"dynamic", api=api("10.3.0"), profile={"other": shapes})


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Hides every real TensorRT and returns a way to put modules of one line in its place."""
    for name in ("tensorrt", "tensorrt_rtx"):
        # Set first: only what was there is put back, or taken out, after the test.
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    def install(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    return install


def test_tensorrt_comes_before_rtx(modules):
    modules("tensorrt", "__version__ = '10.3.0'")
    modules("tensorrt_rtx", "__version__ = '1.7'")
    assert (load_api().flavor, load_api().version) == ("tensorrt", "10.3.0")
    assert load_api("tensorrt_rtx").version == "1.7"


def test_broken_tensorrt_gives_way_to_rtx(modules):
    modules("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open')")
    with pytest.raises(DeviceError, match=r"tensorrt: libnvinfer\.so\.10"):
        load_api()
    modules("tensorrt_rtx", "__version__ = '1.7'")
    assert load_api().flavor == "tensorrt_rtx"
    with pytest.raises(DeviceError, match=r"libnvinfer\.so\.10"):
        load_api("tensorrt")


def test_missing_tensorrt_names_the_extra(modules):
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-layermerge\[tensorrt\]'"):
        load_api()
    with pytest.raises(MissingDependencyError, match=r"'trt-layermerge\[tensorrt-rtx\]'"):
        load_api("tensorrt_rtx")


def test_module_is_kept_as_given():
    module = ModuleType("tensorrt")
    module.__version__ = "1"
    assert TensorRTApi(module, "tensorrt").module is module
