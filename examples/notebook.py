"""From a trained network in memory to a faster one, an ONNX file and its figures."""

import numpy as np
import torch
from nets import resnet20  # examples/glyphs: 36 letters and digits, 32x32
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import trt_layermerge as tlm


def loader(split: str, *, shuffle: bool = False) -> DataLoader:
    """Batches of images, normalised as the network takes them, and labels: use your own."""
    data = np.load(f"glyphs/data/{split}.npz")
    images = (torch.from_numpy(data["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    return DataLoader(TensorDataset(images, torch.from_numpy(data["labels"])), 100, shuffle)


model = resnet20()
model.load_state_dict(load_file("glyphs/weights/resnet20.safetensors"))
train, val, test = loader("train", shuffle=True), loader("val"), loader("test")

result = tlm.compress(
    model, train, torch.zeros(1, 3, 32, 32), speedup=1.5, val_loader=val, test_loader=test
)
print(f"{result.speedup:.2f}x: {result.original_accuracy:.1%} -> {result.accuracy:.1%}")
print(f"{result.original_ms:.3f} ms -> {result.latency_ms:.3f} ms; {result.certificate.ok=}")
result.export("resnet20-fast.onnx")
