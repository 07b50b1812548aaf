"""One code path for every version: names taken where they exist, options refused where not."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.backends.fake_tensorrt import ENGINE, TABLE, TENSORRT, VERSIONS, Names, fake_tensorrt
from trt_layermerge.backends import tensorrt, tensorrt_config
from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import TensorRTApi, load_api
from trt_layermerge.backends.tensorrt_options import BuildOptions, default_timing_cache
from trt_layermerge.backends.tensorrt_site import BuildSite
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)

GIB = 1 << 30
ORIN = BuildSite("Orin (nvgpu), compute capability 8.7", None, 4 * GIB, "GPU", jetson=True)
DESKTOP = BuildSite("RTX 4090, compute capability 8.9", None, 20 * GIB, "GPU")
STRONG = [v for v in TENSORRT if v != "8.6.1"]


@pytest.fixture
def site(monkeypatch):
    """Builds as if on some machine; an Orin unless the test says otherwise."""

    def stand_on(where):
        monkeypatch.setattr(tensorrt, "look_around", lambda: where)

    stand_on(ORIN)
    return stand_on


pytestmark = pytest.mark.usefixtures("site")


def api(version):
    return TensorRTApi(fake_tensorrt(version), "tensorrt")


def configured(library, model=b"conv", **options):
    """Returns the record of a build and the configuration that the fake builder saw."""
    build = build_engine(model, api=library, options=BuildOptions(**options))
    return build.settings, library.module.built[-1][1]


@pytest.mark.parametrize(
    ("model", "precision", "weak"),
    [
        (b"conv", "fp32", set()),
        (b"conv half", "fp16", {"FP16"}),
        (b"conv half int8", "int8", {"INT8", "FP16"}),
    ],
)
@pytest.mark.parametrize("version", ["8.5.2", *TENSORRT])
def test_flags_by_version(version, model, precision, weak):
    library = api(version)
    build = build_engine(model, precision, api=library)
    [(network, config)] = library.module.built
    strong = version in STRONG
    bits = {"8": 0b01, "1": 0b11}[version[0]] if not version.startswith("11") else 0b1
    assert network.creation_flags == bits
    assert config.on == (set() if strong else weak)
    assert build.settings["typing"] == (
        "strong" if strong else " ".join(["weak", *_in_order(weak)])
    )
    assert (build.plan, build.version, build.precision) == (ENGINE, version, precision)
    assert build.log == ("WARNING: a warning",)
    assert build.inputs == {"input": (1, 2, 3, 3)}


def _in_order(flags):
    return [name for name in ("INT8", "FP16") if name in flags]


def test_everything_that_decides_an_engine_is_recorded():
    settings, _ = configured(api("10.3.0"), b"conv half")
    assert settings == {
        "typing": "strong",
        "types": ["FLOAT", "HALF"],
        "tf32": False,
        "refit": False,
        "compute_capability": "the GPU at hand",
        "optimization_level": 3,
        "workspace_bytes": 3 * GIB,
        "free_bytes": 4 * GIB,
        "memory": "GPU",
        "hardware_compatible": False,
        "version_compatible": False,
        "io_formats": "LINEAR",
        "timing_cache": "not used",
    }


@pytest.mark.parametrize("version", TENSORRT)
def test_tf32_is_off_unless_asked_for(version):
    assert "TF32" not in configured(api(version))[1].on
    settings, config = configured(api(version), tf32=True)
    assert "TF32" in config.on
    assert settings["tf32"] is True


@pytest.mark.parametrize(
    ("wanted", "free", "granted"),
    [
        (None, None, 8 * GIB),  # the library's own limit
        (None, 20 * GIB, 8 * GIB),
        (None, 4 * GIB, 3 * GIB),  # three quarters of what is free
        (GIB, 4 * GIB, GIB),
        (5 * GIB, 4 * GIB, 3 * GIB),
        (5 * GIB, None, 5 * GIB),
        (None, int(4.6 * GIB), 3 * GIB),  # 3.45 GiB, rounded down to 0b11 << 30
        (None, int(4.7 * GIB), 7 * GIB // 2),
        (2 * GIB + 1, 20 * GIB, 2 * GIB + 1),  # what is asked for is not rounded
        (None, 3, 2),
    ],
)
def test_workspace_is_clamped_to_free_memory(site, wanted, free, granted):
    site(BuildSite("Orin", None, free, "GPU"))
    settings, config = configured(api("10.3.0"), workspace_bytes=wanted)
    assert config.pools == {"WORKSPACE": granted}
    assert settings["workspace_bytes"] == granted


def test_memory_is_looked_up_before_every_build(monkeypatch):
    sites = iter([BuildSite(free_bytes=4 * GIB), BuildSite(free_bytes=2 * GIB)])
    monkeypatch.setattr(tensorrt, "look_around", lambda: next(sites))
    library = api("10.3.0")
    granted = [configured(library)[0]["workspace_bytes"] for _ in range(2)]
    assert granted == [int(tensorrt_config.WORKSPACE_SHARE * 4 * GIB), int(1.5 * GIB)]


def test_optimization_level():
    for version in TENSORRT:
        settings, config = configured(api(version), optimization_level=5)
        assert config.builder_optimization_level == settings["optimization_level"] == 5
    assert configured(api("8.5.2"))[0]["optimization_level"] is None
    with pytest.raises(UsageError, match=r"came with TensorRT 8\.6, this is tensorrt 8\.5\.2"):
        configured(api("8.5.2"), optimization_level=5)
    with pytest.raises(UsageError, match=r"no optimisation level 6; choose 0"):
        BuildOptions(optimization_level=6)


@pytest.mark.parametrize("version", TENSORRT)
def test_compatible_engines(site, version):
    site(DESKTOP)
    library = api(version)
    _, config = configured(library)
    assert config.hardware_compatibility_level is None
    assert "VERSION_COMPATIBLE" not in config.on
    settings, config = configured(library, hardware_compatible=True, version_compatible=True)
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert "VERSION_COMPATIBLE" in config.on
    assert (settings["hardware_compatible"], settings["version_compatible"]) == (True, True)


@pytest.mark.parametrize("option", ["hardware_compatible", "version_compatible"])
def test_compatibility_before_it_existed(site, option):
    site(DESKTOP)
    with pytest.raises(UsageError, match=rf"8\.6, this is tensorrt 8\.5\.2; leave build.*{option}"):
        configured(api("8.5.2"), **{option: True})


def test_hardware_compatibility_is_not_for_jetson():
    with pytest.raises(UsageError, match=r"on a Jetson; leave build\.options\.hardware_compatible"):
        configured(api("10.3.0"), hardware_compatible=True)


def test_weights_can_never_be_refitted():
    for version in TENSORRT:
        assert "REFIT" not in configured(api(version))[1].on


@pytest.mark.parametrize("version", TENSORRT)
def test_io_formats_are_freed_where_asked(version):
    library = api(version)
    assert configured(library)[0]["io_formats"] == "LINEAR"
    assert library.module.built[-1][0].tensors["input"].allowed_formats is None
    settings, _ = configured(library, free_io_formats=True)
    assert settings["io_formats"] == {
        "input": ["LINEAR", "CHW32", "HWC"],
        "logits": ["LINEAR", "CHW32", "HWC"],
    }
    bits = library.module.built[-1][0].tensors["input"].allowed_formats
    assert bits == 1 << 0 | 1 << 5 | 1 << 8  # LINEAR, CHW32 and HWC in every version


@pytest.mark.parametrize(
    ("word", "kind", "capability"), [("fp8", "FP8", "8.9"), ("bf16", "BF16", "8.0")]
)
def test_other_types_are_refused_with_what_they_need(word, kind, capability):
    words = rf"layer 'conv1' is typed {kind}, which needs a GPU of compute capability {capability}"
    with pytest.raises(UnsupportedModelError, match=words + r".*fp32, fp16 and int8 only"):
        build_engine(f"conv int8 {word}".encode(), api=api("10.3.0"))


class TestTimingCache:
    """One file for a version and a GPU, replaced whole."""

    def test_every_build_finds_what_the_others_measured(self, tmp_path):
        library = api("10.3.0")
        first, _ = configured(library, timing_cache=tmp_path)
        [path] = tmp_path.iterdir()
        assert path.name == "tensorrt-10.3.0-orin-nvgpu-compute-capability-8-7.timing"
        assert path.read_bytes() == b"kernel0"
        assert first["timing_cache"] == f"{path.name}, 0 bytes before, 7 after"
        second, config = configured(library, timing_cache=tmp_path)
        assert config.cache.actor.words == {"kernel0", "kernel1"}
        assert second["timing_cache"] == f"{path.name}, 7 bytes before, 15 after"

    def test_one_file_for_each_version_and_gpu(self, tmp_path, site):
        configured(api("10.3.0"), timing_cache=tmp_path)
        configured(api("11.4.0.106"), timing_cache=tmp_path)
        site(DESKTOP)
        configured(api("10.3.0"), timing_cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == 3

    def test_what_another_process_added_is_kept(self, tmp_path):
        library = api("10.3.0")
        configured(library, timing_cache=tmp_path)
        [path] = tmp_path.iterdir()
        library.module.before_build = lambda: path.write_bytes(b"kernel0 theirs")
        configured(library, timing_cache=tmp_path)
        assert path.read_bytes() == b"kernel0 kernel1 theirs"

    @pytest.mark.parametrize("content", [b"damaged", b"foreign"])
    def test_a_cache_that_is_refused_is_started_anew(self, tmp_path, content):
        library = api("10.3.0")
        configured(library, timing_cache=tmp_path)
        [path] = tmp_path.iterdir()
        path.write_bytes(content)
        configured(library, timing_cache=tmp_path)
        assert path.read_bytes() == b"kernel1"

    def test_a_folder_that_cannot_be_written_costs_nothing(self, tmp_path):
        (tmp_path / "file").write_text("")
        settings, _ = configured(api("10.3.0"), timing_cache=tmp_path / "file")
        assert settings["timing_cache"].startswith("not saved: cannot write")

    def test_without_a_gpu_nothing_is_timed(self, tmp_path, site):
        site(BuildSite(no_gpu="no driver"))
        settings, _ = configured(api("10.3.0"), timing_cache=tmp_path)
        assert settings["timing_cache"] == "not used: there is no GPU to time on"
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_build_leaves_the_cache_alone(self, tmp_path):
        with pytest.raises(DeviceError):
            configured(api("10.3.0"), b"conv unbuildable", timing_cache=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_its_usual_place(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_timing_cache() == tmp_path / "trt-layermerge" / "timing"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_timing_cache() == Path.home() / ".cache" / "trt-layermerge" / "timing"


def test_parser_errors_without_names_give_the_index():
    with pytest.raises(
        UnsupportedModelError, match=r"INVALID_NODE at node 4: no importer\. Replace"
    ):
        build_engine(b"odd", api=api("8.6.1"))


@pytest.mark.parametrize("version", STRONG)
def test_parser_errors_with_names(version):
    with pytest.raises(
        UnsupportedModelError, match=r"at node 'layer4' \(Odd\): no importer"
    ) as got:
        build_engine(b"odd", api=api(version))
    asks_for_parts = version != "10.0.1"  # which has no supports_model_v2
    assert ("(it knows 6 other nodes, in 2 pieces)" in str(got.value)) == asks_for_parts


@pytest.mark.parametrize("version", TENSORRT)
def test_bytes_that_are_no_model(version):
    with pytest.raises(CorruptInputError, match="no ONNX model; export the network again"):
        build_engine(b"junk", api=api(version))
    with pytest.raises(CorruptInputError, match="is empty; export the network again"):
        build_engine(b"", api=api(version))


class TestFailedBuilds:
    """A lack of memory is told as one, also where the library disguises it."""

    def test_memory_that_the_log_names(self):
        with pytest.raises(DeviceError) as got:
            build_engine(b"hungry", api=api("10.3.0"))
        assert str(got.value) == (
            "tensorrt 10.3.0 ran out of memory while it built the engine: 4,096 MiB of GPU memory "
            "was free, and a layer could have 3,072 MiB of it: ERROR: [defaultAllocator.cpp] Cuda "
            "failure: out of memory. close other programs, on a Jetson the desktop too (sudo "
            "systemctl isolate multi-user.target), or choose a smaller batch (--batch), and type "
            "the same command again"
        )

    def test_memory_that_python_names(self, site):
        site(DESKTOP)
        with pytest.raises(DeviceError, match=r"ran out of memory.*bad_alloc.*close other") as got:
            build_engine(b"raising", api=api("10.3.0"))
        assert "Jetson" not in str(got.value)

    def test_no_kernel_while_memory_is_short_is_a_lack_of_memory(self, site):
        site(BuildSite("Orin", None, GIB // 2, "GPU", jetson=True))
        with pytest.raises(DeviceError, match=r"out of memory.*512 MiB.*implementation.*conv1"):
            build_engine(b"unbuildable", api=api("10.3.0"))

    def test_a_workspace_that_was_chosen_too_small_is_named(self, site):
        site(DESKTOP)
        options = BuildOptions(workspace_bytes=1 << 20)
        with pytest.raises(
            DeviceError, match=r"could have 1 MiB.*Give more \(build\.options\.work"
        ):
            build_engine(b"unbuildable", api=api("10.3.0"), options=options)

    def test_no_kernel_with_memory_to_spare_is_not(self):
        with pytest.raises(DeviceError, match=r"could not build.*for node conv1.*--precision fp32"):
            build_engine(b"conv unbuildable", api=api("10.3.0"))


def test_builder_without_a_gpu_says_so():
    library = api("10.3.0")
    library.module.no_gpu = True
    with pytest.raises(DeviceError, match=r"cannot start a builder: .*error: 35.*nvidia-smi"):
        build_engine(b"conv", api=library)


@pytest.mark.parametrize("version", TENSORRT)
def test_profile_reaches_the_builder_and_is_checked(version):
    shapes = ((1, 2, 3, 3), (4, 2, 3, 3), (8, 2, 3, 3))
    library = api(version)
    options = BuildOptions(profile={"input": shapes})
    build = build_engine(b"dynamic", api=library, options=options)
    assert library.module.built[0][1].profiles == [{"input": shapes}]
    assert build.profile == {"input": shapes}
    assert build.inputs == {"input": (-1, 2, 3, 3)}
    with pytest.raises(UsageError, match="do not fit"):
        configured(library, b"dynamic", profile={"input": shapes[::-1]})
    with pytest.raises(UsageError, match=r"names \['other'\], but the inputs are \['input'\]"):
        configured(library, b"dynamic", profile={"other": shapes})
    with pytest.raises(UsageError, match=r"dynamic dimensions .*\(build\.max_batch\), or export"):
        configured(library, b"dynamic")


# What of TensorRT's names stands in our own code, and which version has it.

SOURCES = sorted(Path(tensorrt.__file__).parent.glob("tensorrt*.py"))
GUARDED = {
    "module.ComputeCapability": "TensorRT-RTX only, behind a hasattr",
    "IBuilderConfig.num_compute_capabilities": "TensorRT-RTX only",
    "IBuilderConfig.set_compute_capability": "TensorRT-RTX only",
    "OnnxParser.supports_model_v2": "behind a hasattr",
    "OnnxParser.num_subgraphs": "behind the same hasattr",
    "OnnxParser.get_subgraph_nodes": "behind the same hasattr",
    "ParserError.node_name": "behind a hasattr",
    "ParserError.node_operator": "behind a hasattr",
}
HOLDERS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "probe": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "shapes": "IOptimizationProfile",
}
"""What the objects of TensorRT are called in our code, but for the runner's own ``tensor``."""


def used_names():
    """Yields every ``module.X``, ``module.X.Y`` and ``holder.attribute`` of our sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value).split(".")
            if owner[-1] == "module" and len(owner) > 1:
                yield f"module.{node.attr}"
            elif len(owner) > 2 and owner[-2] == "module":
                yield f"{owner[-1]}.{node.attr}"
            elif (path.stem, owner[-1]) == ("tensorrt_runner", "tensor"):
                continue
            elif owner[-1] in HOLDERS and len(owner) <= 2:
                yield f"{HOLDERS[owner[-1]]}.{node.attr}"


def versions_with(name):
    """Returns the versions that have a name; raises ``KeyError`` where none has it."""
    owner, _, attribute = name.partition(".")
    if owner == "module":
        row = TABLE["module"][attribute]
    elif owner in TABLE["enumerations"]:
        row = ["01"[v is not None] for v in TABLE["enumerations"][owner][attribute]]
    else:
        row = TABLE["classes"][owner][attribute]
    return {version for version, bit in zip(VERSIONS, row, strict=True) if bit == "1"}


def test_every_name_we_use_exists_in_every_version_or_is_guarded():
    used = {name for name in used_names() if not name.startswith("module.__")}
    assert {"Builder.build_serialized_network", "BuilderFlag.TF32", "module.OnnxParser"} <= used
    enumerations = {f"module.{name}" for name in TABLE["enumerations"]}
    sometimes = {n for n in used if versions_with(n) != set(VERSIONS)}
    assert sometimes - GUARDED.keys() - {"ComputeCapability.CURRENT"} == set()
    assert GUARDED.keys() - used - enumerations == set()


def test_the_table_itself():
    """Facts that decided the design, as the bindings show them."""
    flags = TABLE["enumerations"]
    strong = dict(
        zip(VERSIONS, flags["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"], strict=True)
    )
    assert [strong[v] for v in ("8.6.1", "10.3.0", "11.4.0.106", "1.7.1.116")] == [None, 1, 0, 0]
    for gone in ("FP16", "INT8"):
        assert {v[:2] for v in versions_with(f"BuilderFlag.{gone}")} == {"8.", "10"}
    assert {v[:2] for v in versions_with("IBuilderConfig.int8_calibrator")} == {"8.", "10"}
    assert "10.0.1" not in versions_with("OnnxParser.supports_model_v2")
    assert versions_with("module.ComputeCapability") == {"1.7.1.116"}


def test_the_fake_refuses_what_a_version_lacks():
    eleven = fake_tensorrt("11.4.0.106")
    assert not hasattr(eleven.BuilderFlag, "FP16")
    config = eleven.Builder(None).create_builder_config()
    with pytest.raises(AttributeError, match="IBuilderConfig of this version has no attribute"):
        config.int8_calibrator = None
    with pytest.raises(AttributeError, match="platform_has_fast_fp16"):
        _ = eleven.Builder(None).platform_has_fast_fp16
    with pytest.raises(NotImplementedError, match="does not play"):
        _ = eleven.Builder(None).max_threads
    with pytest.raises(AssertionError, match="implicit batch"):
        fake_tensorrt("8.6.1").Builder(None).create_network(0)
    with pytest.raises(AssertionError, match="means nothing"):
        eleven.Builder(None).create_network(1 << 4)
    assert "builder_optimization_level" not in Names("8.5.2").of("IBuilderConfig")


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


@pytest.mark.parametrize("name", ["evilmod", "evilmod.inner", "os", ""])
def test_no_other_module_is_ever_imported(name, tmp_path, monkeypatch):
    """Names of libraries come from files: sidecars, manifests, jobs."""
    (tmp_path / "evilmod.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="builds no engines; choose one of tensorrt, tensorrt_rtx"):
        load_api(name)
    assert not (tmp_path / "ran").exists()


def test_module_is_kept_as_given():
    module = ModuleType("tensorrt")
    module.__version__ = "1"
    assert TensorRTApi(module, "tensorrt").module is module
