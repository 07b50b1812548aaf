"""Engines of four networks at every precision, before and after merging, static and dynamic.

Run as ``python -m benchmarks.bm_engines`` where TensorRT-RTX is installed; no GPU is needed, and
some minutes are. For each network: trace, merge a random plan of compositions and removals, export,
then build both at fp32, fp16 and int8, with a batch of 1 and with a free one. Every engine is
written with its sidecar and read back through it. Writes ``engines/records/rtx-cpu-build.json``
and ``docs/results/engines.md``. Says nothing about latency or accuracy: nothing is run.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.results import Page
from benchmarks.studies.settings import ROOT
from tests.export.free import free_batch
from tests.plans import random_plan
from trt_layermerge.backends.host import cpu_name
from trt_layermerge.backends.tensorrt import EngineBuild, build_engine
from trt_layermerge.backends.tensorrt_api import load_api
from trt_layermerge.backends.tensorrt_options import BuildOptions
from trt_layermerge.core.device import PRECISIONS, Precision
from trt_layermerge.core.jsonio import Json, read_json, sha256_bytes, write_json
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.deploy.sidecar import Network, Origin, build_record, check_engine, write_engine
from trt_layermerge.export.batch import batch_shapes
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.merge import collapse, relax
from trt_layermerge.pipeline.versions import versions
from trt_layermerge.quantize.qdq import quantize_model
from trt_layermerge.quantize.ranges import fixed_ranges
from trt_layermerge.tracing import trace

RECORDS = ROOT / "engines" / "records" / "rtx-cpu-build.json"
KIND = "builds"
GLYPHS = ROOT / "examples" / "glyphs"
SEED, BATCHES = 0, (1, 4, 8)


def glyph_net(name: str) -> nn.Module:
    """Returns a glyph network with its trained weights."""
    spec = importlib.util.spec_from_file_location("glyph_nets", GLYPHS / "nets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = getattr(module, name)()
    network.load_state_dict(load_file(GLYPHS / "weights" / f"{name}.safetensors"))
    return network.eval()


def torchvision_net(name: str) -> nn.Module:
    """Returns a torchvision network with random weights of a seed."""
    import torchvision

    torch.manual_seed(SEED)
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network.eval()


NETWORKS: dict[str, tuple[Callable[[str], nn.Module], str, int, str]] = {
    "glyphs resnet20": (glyph_net, "resnet20", 32, "trained"),
    "glyphs mobilenet_v2": (glyph_net, "mobilenet_v2", 32, "trained"),
    "torchvision resnet34": (torchvision_net, "resnet34", 224, "random"),
    "torchvision mobilenet_v2": (torchvision_net, "mobilenet_v2", 224, "random"),
}


@torch.no_grad()
def masters(model: nn.Module, size: int) -> tuple[dict[Network, bytes], list[Json]]:
    """Returns both networks as fp32 ONNX of batch 1, and the candidates that were merged."""
    example = torch.zeros(1, 3, size, size)
    graph = trace(model, example)
    plan = random_plan(graph, SEED, kinds=("compose", "identity"), longest=4)
    merged = collapse(relax(model, graph, plan)).eval()
    exported: dict[Network, bytes] = {
        "original": export_bytes(model, example),
        "merged": export_bytes(merged, example),
    }
    return exported, [candidate.to_json() for candidate in plan.changed]


def typed(master: bytes, precision: Precision, dynamic: bool) -> bytes:
    """Returns what is built: the fp32 master, freed, quantised at fixed scales and typed."""
    model = free_batch(master) if dynamic else master
    if precision == "int8":
        return to_precision(quantize_model(model, fixed_ranges(model)), "fp16", keep_io=True)
    return to_precision(model, precision, keep_io=True)


def build(model: bytes, precision: Precision) -> EngineBuild:
    """Returns the engine by TensorRT-RTX, with a profile where the batch is free."""
    options = BuildOptions(profile=batch_shapes(model, *BATCHES))
    return build_engine(model, precision, api=load_api("tensorrt_rtx"), options=options)


def written(built: EngineBuild, network: Network, model: bytes) -> Json:
    """Returns the record of an engine that went to a file with its sidecar and came back."""
    record = build_record(built, network, model)
    origin = Origin(sha256_bytes(model), None, {}, None, "", SEED)
    with tempfile.TemporaryDirectory() as folder:
        plan = write_engine(Path(folder), built, origin, this_machine(), network)
        sidecar = check_engine(plan)
        assert sidecar is not None
        assert (sidecar.plan_sha256, sidecar.network) == (record["plan_sha256"], network)
        assert plan.stat().st_size == record["plan_bytes"]
    return record


def rows() -> Iterator[Json]:
    """Yields a record for every engine; each is built twice, to see whether the bytes recur."""
    for name, (make, model_name, size, weights) in NETWORKS.items():
        exported, changed = masters(make(model_name), size)
        for network, master in exported.items():
            for precision in PRECISIONS:
                for dynamic in (False, True):
                    model = typed(master, precision, dynamic)
                    built = build(model, precision)
                    record = written(built, network, model)
                    again = build(model, precision)
                    yield {
                        "model": name,
                        "weights": weights,
                        "batch": "dynamic" if dynamic else "static",
                        "merged_blocks": len(changed) if network == "merged" else 0,
                        **record,
                        "seconds_again": round(again.seconds, 3),
                        "same_bytes_again": again.plan == built.plan,
                    }
                    print(name, network, precision, dynamic, round(built.seconds, 1), flush=True)


def facts(load: float) -> Json:
    """Returns what decided the engines besides the networks."""
    return {
        "command": "python -m benchmarks.bm_engines",
        "host": f"{cpu_name()}, {os.cpu_count()} cores, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'not set')}, load average at the start {load:.2f}",
        "versions": versions(),
        "seed": SEED,
        "batches": list(BATCHES),
        "int8": "fixed scales (quantize.fixed_ranges), fp16 beside them",
    }


def text(body: Json, found: list[Json]) -> str:
    """Returns the records as a page."""
    seconds = sum(row["seconds"] + row["seconds_again"] for row in found)
    lines = [
        "# Engines built without a GPU",
        "",
        f"Written by `{body['command']}` on {body['host']}; "
        + ", ".join(f"{name} {version}" for name, version in body["versions"].items())
        + f". Seed {body['seed']}. {len(found)} engines, each built twice, {seconds:.0f} s in all. "
        "The records, with the SHA-256 of every engine and ONNX model, lie in "
        "`engines/records/rtx-cpu-build.json`.",
        "",
        "TensorRT-RTX builds engines on a machine without a GPU and cannot run them there. So this "
        "says that every network parses, types, takes its profile and builds, and how large and "
        "how quickly. It says nothing about latency: TensorRT-RTX compiles and times its kernels "
        "on the GPU that runs them. Nothing here was loaded or run.",
        "",
        "Merged: a random plan of compositions and removals, seed 0, without any table, so these "
        "are not the networks that a search would choose. INT8: scales are fixed, not calibrated; "
        "what is not quantised is fp16. The torchvision networks have random weights. "
        f"Dynamic batch: a profile of {body['batches'][0]}, {body['batches'][1]} and "
        f"{body['batches'][2]} images; static: 1 image. Inputs and outputs are float32 everywhere.",
        "",
        f"Built again in the same process, {_recurred(found, 'static')} static and "
        f"{_recurred(found, 'dynamic')} dynamic engines were the same bytes. An engine holds the "
        "workspace that its builder was given, which follows the free memory (`workspace_bytes` in "
        "the records): with another workspace, other bytes, so a hash tells which file an engine "
        "is, not whether a build was right. "
        f"{_larger(found)} of {sum(row['precision'] == 'int8' for row in found)} INT8 engines are "
        "larger than the FP16 engine of the same network; why was not looked into.",
    ]
    for name, (_, _, size, weights) in NETWORKS.items():
        mine = [row for row in found if row["model"] == name]
        blocks = max(row["merged_blocks"] for row in mine)
        lines += [
            "",
            f"## {name} ({weights} weights, 3x{size}x{size}, {blocks} blocks merged)",
            "",
            "| network | precision | batch | engine | ONNX | built in | engine sha256 |",
            "|---|---|---|---|---|---|---|",
            *(_line(row) for row in mine),
        ]
    return "\n".join(lines) + "\n"


def _recurred(found: list[Json], batch: str) -> str:
    """Returns how many engines of a kind of batch were the same bytes twice, of how many."""
    same = [row["same_bytes_again"] for row in found if row["batch"] == batch]
    return f"{sum(same)} of {len(same)}"


def _larger(found: list[Json]) -> int:
    """Returns how many int8 engines are larger than the fp16 one of their network and batch."""
    sizes = {
        (row["model"], row["network"], row["batch"], row["precision"]): row["plan_bytes"]
        for row in found
    }
    return sum(size > sizes[(*key[:3], "fp16")] for key, size in sizes.items() if key[3] == "int8")


def _line(row: Json) -> str:
    sizes = " | ".join(f"{row[key] / 1e6:.2f} MB" for key in ("plan_bytes", "onnx_bytes"))
    return (
        f"| {row['network']} | {row['precision']} | {row['batch']} | {sizes} | "
        f"{row['seconds']:.1f} s, {row['seconds_again']:.1f} s | `{row['plan_sha256'][:12]}…` |"
    )


@dataclass(frozen=True)
class RecordsPage(Page):
    """A page that is made of records of builds."""

    @property
    def data(self) -> Path:
        """The records."""
        return RECORDS

    def read(self) -> str:
        """Returns the text that the records give."""
        body = read_json(self.data, KIND)
        return self.text(body, body["builds"])


PAGE = RecordsPage("engines", text)


def main() -> None:
    """Builds everything and writes records and page."""
    load = os.getloadavg()[0]
    body = {**facts(load), "machine": asdict(this_machine()), "builds": list(rows())}
    write_json(RECORDS, KIND, body)
    PAGE.write()


if __name__ == "__main__":
    main()
