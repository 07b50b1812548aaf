"""Trains a small diffusion model on glyphs, makes its U-Net faster, and samples from both.

    cd examples/ddpm && python run.py --out ../../runs/ddpm

Noise prediction throughout: no labels, no classes. Everything goes through ``tlm.Session``; the
training between ``relax`` and ``merge`` is this example's own loop. Figures go to ``figures.json``,
pictures to ``samples.png``. An interrupted run continues with the trained U-Net that it finds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusion
import onnxruntime as ort
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from unet import UNet

import trt_layermerge as tlm

EXAMPLE = torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.long)
SHOWN, SAMPLING_STEPS, FURTHER_LR = 24, 50, 4e-4


def trained(path: Path, steps: int) -> UNet:
    """Returns the U-Net in a file, or trains one from scratch, with seed 0, and writes it."""
    torch.manual_seed(0)
    network = UNet()
    if path.exists():
        network.load_state_dict(load_file(path))
    else:
        diffusion.train(network.train(), diffusion.glyphs("train"), steps, 2e-3, seed=0)
        save_file(network.state_dict(), path)
    return network.eval()


def trained_on(network: UNet, steps: int, seeds: Sequence[int]) -> list[float]:
    """Returns the test losses of the U-Net itself after as much further training as plans get."""
    losses = []
    for seed in seeds:
        longer = copy.deepcopy(network).train()
        diffusion.train(longer, diffusion.glyphs("train"), steps, FURTHER_LR, seed)
        losses.append(diffusion.held_out_loss(longer, diffusion.glyphs("test")))
        print(f"original, seed {seed}: loss {losses[-1]:.4f}", flush=True)
    return losses


def shown(network: nn.Module) -> Tensor:
    """Returns images ``(N, 1, 16, 16)`` that a network makes of noise, the same for every one."""
    start = torch.randn(SHOWN, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return diffusion.sample(network, start, SAMPLING_STEPS)


def picture(rows: Sequence[Tensor], path: Path) -> None:
    """Writes images as a PNG, one row for each batch, every pixel three wide."""
    lines = [row[:, 0].permute(1, 0, 2).reshape(16, -1) for row in rows]
    pixels = ((torch.cat(lines).clamp(-1, 1) + 1) * 127.5).byte().numpy()
    Image.fromarray(pixels.repeat(3, 0).repeat(3, 1)).save(path, optimize=True)


def sampling_ms(files: Sequence[Path], rounds: int = 11) -> list[list[float]]:
    """Returns what making one image takes with each network, round by round, in turns.

    ONNX Runtime on one thread; the time that the thread spends on its core, in ms, of the whole
    loop of ``SAMPLING_STEPS`` steps.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [ort.InferenceSession(file, options, ["CPUExecutionProvider"]) for file in files]
    start, found = torch.zeros(1, 1, 16, 16), [[] for _ in files]
    for number in range(rounds + 1):
        for session, times in zip(sessions, found, strict=True):
            names = [value.name for value in session.get_inputs()]

            def predict(x: Tensor, t: Tensor, session=session, names=names) -> Tensor:
                (noise,) = session.run(None, dict(zip(names, (x.numpy(), t.numpy()), strict=True)))
                return torch.from_numpy(noise)

            begun = time.thread_time()
            diffusion.sample(predict, start, SAMPLING_STEPS)
            if number:  # the first round warms up
                times.append(1e3 * (time.thread_time() - begun))
    return found


def compressed(
    original: UNet, rules: str, speedup: float, steps: int, seeds: Sequence[int], folder: Path
) -> tuple[dict[str, Any], list[Tensor]]:
    """Returns the figures of one compression, and samples before training and of the first seed.

    Args:
        original: The trained U-Net.
        rules: ``paper`` or ``full``.
        speedup: Of one run of the U-Net, as measured.
        steps: Of fine-tuning.
        seeds: Of fine-tuning, each from the same plan.
        folder: Where tables and ONNX models go.
    """
    images, test = diffusion.glyphs("train"), diffusion.glyphs("test")
    drawn = diffusion.batches(images, 8, 64, torch.Generator().manual_seed(0))
    calibration = [(x, t) for x, t, _ in drawn]
    settings = {
        "search": {"rules": rules, "race_steps": 0},
        "importance": {"fit_images": 256, "score_images": 256},
    }
    session = tlm.Session(original, EXAMPLE, folder=folder, settings=settings)
    begun = time.perf_counter()
    session.measure()
    session.score(calibration)
    plan = session.search(calibration, speedup=speedup)
    searched = time.perf_counter() - begun
    changed = [str(c) for c in plan.changed]
    print(rules, f"{searched:.0f} s", *changed, sep="\n  ", flush=True)
    losses, errors, pictures = [], [], []
    for seed in seeds:
        network = session.relax()
        session.repair(calibration)
        before = diffusion.held_out_loss(network, test)
        if not pictures:
            pictures.append(shown(network))
        diffusion.train(network.train(), images, steps, FURTHER_LR, seed)
        merged = session.merge((test[:8], torch.linspace(0, 999, 8).long()))
        losses.append(diffusion.held_out_loss(merged, test))
        errors.append(session.certificate.max_rel_error)
        print(f"seed {seed}: loss {before:.4f} -> {losses[-1]:.4f}", flush=True)
        if len(pictures) == 1:
            pictures.append(shown(merged))
            session.export()
    times = sampling_ms([folder / "original.onnx", folder / "model.onnx"])
    figures = {
        "rules": rules,
        "candidates": len(session.candidates),
        "seconds": searched,
        "plan": changed,
        "untrained_loss": before,
        "losses": losses,
        "certificate": max(errors),
        "sampling_ms": [statistics.median(t) for t in times],
        "sampling_speedups": sorted(a / b for a, b in zip(*times, strict=True)),
    }
    return figures, pictures


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs everything; returns the figures that ``figures.json`` holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ddpm"))
    parser.add_argument("--rules", nargs="+", default=["paper", "full"])
    parser.add_argument("--speedup", type=float, default=1.25)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    original = trained(given.out / "unet.safetensors", given.base_steps)
    test = diffusion.glyphs("test")
    rows, found = [test[:SHOWN], shown(original)], []
    longer = trained_on(original, given.steps, given.seeds[:1])
    for rules in given.rules:
        figures, pictures = compressed(
            original, rules, given.speedup, given.steps, given.seeds, given.out / rules
        )
        found.append(figures)
        rows += pictures
        told = {
            "base_steps": given.base_steps,
            "steps": given.steps,
            "seeds": given.seeds,
            "speedup": given.speedup,
            "test_images": len(test),
            "original_loss": diffusion.held_out_loss(original, test),
            "original_losses": longer,
            "plans": found,
        }
        (given.out / "figures.json").write_text(json.dumps(told, indent=1))
        picture(rows, given.out / "samples.png")
    return told


if __name__ == "__main__":
    main()
