"""INT8 on both glyph networks: every preset, three draws of calibration images each.

Run as ``python -m tests.bench.bm_quantize``; about three minutes on two cores. Calibrated on
``train``, judged and chosen on ``val``; ``test`` is opened once, for the chosen preset. Writes
``docs/results/int8.md`` and ``calib/tables/glyphs-*.json``.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.quantize.graphs import glyph_images, glyphs
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.quantize.choose import Quantized, quantize_within
from trt_layermerge.quantize.preset import Preset, load_preset
from trt_layermerge.quantize.session import logits
from trt_layermerge.quantize.table import CalibrationTable, save_table

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "docs" / "results" / "int8.md"
PRESETS = ("default", "minmax", "entropy", "percentile")
SEEDS = (0, 1, 2)
NETWORKS = {"resnet20": "resnet20", "mobilenet_v2": "mobilenetv2"}
"""Name in ``examples/glyphs/nets.py``, and in the file of the table."""


@dataclass(frozen=True)
class Trial:
    """One calibration of one network."""

    name: str
    preset: Preset
    result: Quantized

    @property
    def row(self) -> str:
        """What ``val`` says about it."""
        found = self.result
        worst = min(found.layers, key=lambda layer: layer.sqnr_db)
        kept = ", ".join(f"`{name}`" for name in found.keep_float) or "none"
        return (
            f"| {self.name} | {self.preset.seed} | {found.accuracy_int8:.1%} "
            f"| {found.agreement:.1%} | {worst.sqnr_db:.1f} (`{worst.name}`) | {kept} |"
        )


def calibrated(network: str, name: str, seed: int) -> Trial:
    """Returns one trial: calibrated on ``train``, judged on ``val``."""
    preset = replace(load_preset(ROOT / "calib" / "presets" / f"{name}.yaml", {}), seed=seed)
    train, _ = glyph_images("train")
    images, labels = glyph_images("val")
    batches = [train[preset.sample(len(train))]]
    result = quantize_within(glyphs(network), batches, images, labels, preset)
    return Trial(name, preset, result)


def chosen(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials of the preset that is best on ``val``: by accuracy, then agreement."""

    def figures(name: str) -> tuple[float, float]:
        mine = [trial.result for trial in trials if trial.name == name]
        return mean(r.accuracy_int8 or 0.0 for r in mine), mean(r.agreement for r in mine)

    best = max(PRESETS, key=figures)
    return [trial for trial in trials if trial.name == best]


def by_default(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the outputs of ONNX Runtime with all its optimisations."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: NDArray[np.float32] = session.run(None, {"input": images})[0]
    return outputs


def tested(network: str, trials: Sequence[Trial]) -> list[str]:
    """Returns what ``test`` says about the chosen trials."""
    images, labels = glyph_images("test")
    reference = logits(glyphs(network), images).argmax(axis=1)

    def accuracy(outputs: NDArray[np.float32]) -> float:
        return float((outputs.argmax(axis=1) == labels).mean())

    lines = []
    for trial in trials:
        model = trial.result.model
        half = to_precision(model, "fp16", keep_io=True)
        outputs = logits(model, images)
        agreement = float((outputs.argmax(axis=1) == reference).mean())
        lines.append(
            f"| {network} | {trial.name} | {trial.preset.seed} "
            f"| {(reference == labels).mean():.1%} | {accuracy(outputs):.1%} "
            f"| {accuracy(logits(half, images)):.1%} | {accuracy(by_default(model, images)):.1%} "
            f"| {agreement:.1%} | {len(glyphs(network)):,} / {len(model):,} / {len(half):,} "
            f"| {len(trial.result.keep_float)} of {len(trial.result.layers)} |"
        )
    return lines


HEAD = """\
# INT8 on the glyph networks

Written by `python -m tests.bench.bm_quantize` with Python {python}, ONNX Runtime {runtime}.
Calibrated on images of `train`, drawn with seeds 0, 1 and 2; judged on the 300 images of `val`,
where a preset may lose one point before layers stay in float. The preset with the best mean
accuracy on `val` (then agreement) was chosen for each network and opened `test` once.

One image of `val` is 0.33 points, its standard error about 1.7; of `test` 0.1 and about 0.8.
The presets differ by less than that, except for entropy's agreement: this chooses none of them for
other networks.

## The chosen preset on `test` (1,000 images)

`int8` leaves the rest in float32, `int8 + fp16` in float16; both compute every Q/DQ pair as it is
written. `by default` is the `int8` model with all of ONNX Runtime's optimisations, which sum in
another order; a value between two steps may then fall on the other one. No integer kernel of the
CPU fits these graphs: every convolution runs in float on rounded numbers. `agreement` is the share
of images with the class of float32. Bytes are those of the ONNX files, whose weights stay float in
front of their Q/DQ pairs; an engine stores them in 8 bits. No engine was run: that needs a GPU.

| network | preset | seed | fp32 | int8 | int8 + fp16 | by default | agreement \
| bytes fp32 / int8 / int8 + fp16 | in float |
|---|---|---|---|---|---|---|---|---|---|
"""

SECTION = """
## {network} on `val` (fp32: {accuracy:.1%})

The worst layer is the one whose output, quantised alone, has the lowest ratio of signal to noise.

| preset | seed | int8 | agreement | worst layer, dB | layers in float |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Calibrates everything, opens ``test`` and writes the page and the tables."""
    sections, rows = [], []
    for network, short in NETWORKS.items():
        trials = [calibrated(network, name, seed) for name in PRESETS for seed in SEEDS]
        best = chosen(trials)
        head = SECTION.format(network=network, accuracy=trials[0].result.accuracy_fp32)
        sections.append(head + "\n".join(trial.row for trial in trials) + "\n")
        rows += tested(network, best)
        table = CalibrationTable.of(glyphs(network), best[0].preset, best[0].result)
        save_table(ROOT / "calib" / "tables" / f"glyphs-{short}.json", table)
        print(sections[-1], *rows, sep="\n", flush=True)
    head = HEAD.format(python=platform.python_version(), runtime=onnxruntime.__version__)
    RESULT.write_text(head + "\n".join(rows) + "\n" + "".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
