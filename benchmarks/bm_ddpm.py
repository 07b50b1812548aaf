"""A small diffusion model on glyphs: its U-Net made faster, and what that does to its samples.

Run as ``python -m benchmarks.bm_ddpm`` on a quiet machine; about an hour on one core. It runs
``examples/ddpm/run.py`` and records its figures; ``--done FOLDER`` takes those of a run that is
there. Writes ``docs/results/ddpm.md`` and ``docs/results/ddpm.png``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import RESULTS, Page, measured_by
from benchmarks.studies.settings import ROOT
from trt_layermerge.core.jsonio import Json

RUN = ROOT / "runs" / "bm_ddpm"

HEAD = """\
# A diffusion model on glyphs

{origin}

The U-Net of [examples/ddpm](../../examples/ddpm/README.md) (DDPM's, with 32 and 64 channels, on
grey 16x16 glyphs) was trained to predict noise for {base_steps:,} steps with seed 0. Its plans
are for a measured {speedup:.2f}x of one run; each was trained on from there for {steps} steps
with the seeds {seeds}. Loss is the mean squared error of the noise on {test_images:,} test images
that nothing else has seen, each at one time step, the same for all. Sampling is the whole loop of
50 steps of DDIM for one image, in ONNX Runtime on one thread, original and merged in turns:
medians, and smallest and largest ratio.

| network | loss, untrained | loss, trained on (each seed) | merge error | sampling | ratio |
|---|---|---|---|---|---|
"""

TAIL = """
The original was trained on in the same way, with the first seed only. Here the new normalisations
of `rules: paper` cost more than this training brings back; leaving whole convolutions out keeps the
old ones.

![samples](ddpm.png)

Rows: test images; the original's samples; then for {plans} the samples before and after training
(seed {first}). All start from the same noise.

## What was replaced

"""

RULES = """\
## Counts of the published method

For the U-Net of the paper (CIFAR-10: 32x32, channels 128, 256, 256, 256, two residual blocks a
level, attention at 16x16), `rules: paper` gives the published 73 blocks and 98 entries, for
diffusers' `UNet2DModel` as for the one of the example:

| blocks | which | entries each | entries |
|---|---|---|---|
| 44 | a convolution of a residual block, as it is | 1 | 44 |
| 22 | both convolutions of a residual block: both kept, or one | 2 | 44 |
| 3 | the convolution of a downsampler | 1 | 3 |
| 3 | the convolution of an upsampler: kept, or left out | 2 | 6 |
| 1 | the last convolution | 1 | 1 |

The first convolution, the 13 projections beside residual blocks and attention stay outside. Where
both convolutions of a residual block become one, the group normalisation and the activation
between them are gone, a new group normalisation (scale one, shift zero) stands behind, and the
time embedding goes through the second convolution: exact, since nothing is padded there any more.
The new normalisation has to be trained; `rules: full` keeps those of the original instead and
takes such a convolution out alone.
"""


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    longer = ", ".join(f"{loss:.4f}" for loss in header["original_losses"])
    both = statistics.mean(row["sampling_ms"][0] for row in rows)
    lines = [f"| original | {header['original_loss']:.4f} | {longer} | | {both:.0f} ms | |\n"]
    for row in rows:
        losses = ", ".join(f"{loss:.4f}" for loss in row["losses"])
        ratios = row["sampling_speedups"]
        lines.append(
            f"| `rules: {row['rules']}` | {row['untrained_loss']:.4f} | {losses} | "
            f"{row['certificate']:.0e} | {row['sampling_ms'][1]:.0f} ms | "
            f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}) |\n"
        )
    names = " and ".join(f"`rules: {row['rules']}`" for row in rows)
    body = HEAD.format(
        origin=measured_by("bm_ddpm", header),
        **{**header, "seeds": ", ".join(map(str, header["seeds"]))},
    )
    body += "".join(lines) + TAIL.format(plans=names, first=header["seeds"][0])
    for row in rows:
        chosen = "".join(f"- `{line}`\n" for line in row["plan"])
        body += f"`rules: {row['rules']}`, {row['candidates']} candidates:\n\n{chosen}\n"
    return body + RULES


PAGE = Page("ddpm", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example and records what came of it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_ddpm", description=__doc__)
    parser.add_argument("--done", type=Path, help="folder of a run of examples/ddpm/run.py")
    given = parser.parse_args(arguments)
    folder = given.done or RUN
    if given.done is None:
        script = ROOT / "examples" / "ddpm" / "run.py"
        subprocess.run([sys.executable, str(script), "--out", str(RUN)], check=True)
    found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    plans = found.pop("plans")
    PAGE.record(found, plans)
    shutil.copyfile(folder / "samples.png", RESULTS / "ddpm.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
