"""Ridge regression of a convolution on sampled positions, from moments gathered batch by batch.

With patches x (D values a group) and targets y at M sampled positions, weights and bias of

    minimise  Σ ‖y − W·x − b‖² / M + ρ·‖W − W₀‖²       ρ = ridge · mean diagonal of Cov(x)

are W = (Cov(y, x) + ρ·W₀) · (Cov(x) + ρ·I)⁻¹ and b = ȳ − W·x̄, in float64, group by group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.kinds import fit_refusal

CHUNK = 1 << 22
"""Values of patches held at a time."""

STRIP = 512
"""Rows of second moments computed at a time, from the diagonal on: the other half mirrors them."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A fitted convolution, in float64.

    Attributes:
        weight: As the convolution's own.
        bias: ``(C_out,)``.
        mean: Mean of the fitted output without the bias, per channel.
        variance: Variance of the fitted output, per channel.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor


class Moments:
    """Sums of products of patches and targets, by group.

    Args:
        conv: The convolution to fit; its input has no padding left to do.

    Raises:
        UnsupportedModelError: If it is too large to be fitted (``kinds.limits.FIT_BYTES``).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv, self.count = conv, 0
        groups, out = conv.groups, conv.out_channels // conv.groups
        self.size = conv.weight[0].numel()
        reason = fit_refusal(groups, self.size)
        if reason is not None:
            raise UnsupportedModelError(f"{reason}; choose the repair none or bn for this block")
        new = conv.weight.new_zeros((), dtype=torch.float64).new_zeros
        self.x, self.y = new(groups, self.size), new(groups, out)
        self.xx = new(groups, self.size, self.size)
        self.xy, self.yy = new(groups, self.size, out), new(groups, out)

    def add(
        self, inputs: Tensor, targets: Tensor, positions: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Adds sampled positions.

        Args:
            inputs: What reaches the convolution, ``(N, C_in, H, W)``.
            targets: What it should put out, ``(N, C_out, H', W')``.
            positions: Image, row and column of every sample in the targets.
        """
        rows = max(1, CHUNK // (self.size * self.conv.groups))
        for image, row, column in zip(*(torch.split(p, rows) for p in positions), strict=True):
            x = self._patches(inputs, image, row, column)
            y = targets[image, :, row, column].double()
            y = y.reshape(len(image), self.conv.groups, -1).transpose(0, 1)
            self.count += len(image)
            self.x += x.sum(1)
            self.y += y.sum(1)
            for start in range(0, self.size, STRIP):
                strip = self.xx[:, start : start + STRIP, start:]
                strip.baddbmm_(x[:, :, start : start + STRIP].mT, x[:, :, start:])
            self.xy.baddbmm_(x.mT, y)
            self.yy += y.square().sum(1)
        for end in range(STRIP, self.size, STRIP):
            self.xx[:, end:, end - STRIP : end] = self.xx[:, end - STRIP : end, end:].mT

    def system(self) -> tuple[Tensor, Tensor]:
        """Returns Cov(x), ``(groups, D, D)``, and Cov(x, y), ``(groups, D, C_out / groups)``."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        # In place: a matrix may have a gigabyte.
        cov = (self.xx / self.count).baddbmm_(mean_x.unsqueeze(2), mean_x.unsqueeze(1), alpha=-1)
        return cov, self.xy / self.count - mean_x.unsqueeze(2) * mean_y.unsqueeze(1)

    def narrowed(self, conv: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Moments:
        """Returns the moments of a dense convolution with some of the channels only.

        Args:
            conv: It has as many channels as are named, and the same kernel.
            inputs: Channels that it reads.
            outputs: Channels that it puts out.
        """
        part, taps = Moments(conv), conv.weight[0, 0].numel()
        rows = (inputs.unsqueeze(1) * taps + torch.arange(taps, device=inputs.device)).flatten()
        part.count, part.x, part.y = self.count, self.x[:, rows], self.y[:, outputs]
        part.xx, part.yy = self.xx[:, rows][:, :, rows], self.yy[:, outputs]
        part.xy = self.xy[:, rows][:, :, outputs]
        return part

    def solve(self, ridge: float, prior: Tensor | None = None, rescale: bool = False) -> Solution:
        """Returns the regression.

        Args:
            ridge: Strength of the pull, relative to the mean variance of the patch values.
            prior: Weights that the pull goes to; zero if None.
            rescale: Whether to scale each channel so that it has the variance of its target.
        """
        (cov, cross), mean_x, mean_y = self.system(), self.x / self.count, self.y / self.count
        spread = (self.yy / self.count - mean_y.square()).clamp_min(0)
        diagonal = cov.diagonal(dim1=1, dim2=2)  # a view
        size = diagonal.mean(1, keepdim=True)
        pull = ridge * torch.where(size > 0, size, 1.0)
        wanted = cross if prior is None else cross + pull.unsqueeze(2) * self._grouped(prior)
        diagonal += pull
        # In place, in the order that LAPACK writes: a symmetric matrix is its own transpose.
        lower, info = cov.mT, cov.new_zeros(len(cov), dtype=torch.int32)
        torch.linalg.cholesky_ex(lower, out=(lower, info))
        weight = torch.cholesky_solve(wanted, lower)
        # wᵀ·Cov·w = wᵀ·(Cov + ρI)·w - ρ·wᵀ·w, and (Cov + ρI)·w is what was wanted.
        variance = ((weight * wanted).sum(1) - pull * weight.square().sum(1)).clamp_min(0)
        if rescale:
            known = variance > 1e-12 * spread
            scale = torch.where(known, spread / torch.where(known, variance, 1.0), 1.0).sqrt()
            weight, variance = weight * scale.unsqueeze(1), variance * scale.square()
        mean = (weight * mean_x.unsqueeze(2)).sum(1)
        return Solution(
            weight.mT.reshape(self.conv.weight.shape),
            (mean_y - mean).flatten(),
            mean.flatten(),
            variance.flatten(),
        )

    def _patches(self, inputs: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Returns what the convolution sees at these positions, ``(groups, M, D)``, float64."""
        (kh, kw), (sh, sw), (dh, dw) = (
            (int(a), int(b))
            for a, b in (self.conv.kernel_size, self.conv.stride, self.conv.dilation)
        )
        rows = row.unsqueeze(1) * sh + torch.arange(kh, device=row.device) * dh
        columns = column.unsqueeze(1) * sw + torch.arange(kw, device=row.device) * dw
        seen = inputs[image.reshape(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)]
        seen = seen.permute(0, 3, 1, 2).reshape(len(image), self.conv.groups, self.size)
        return seen.transpose(0, 1).double()

    def _grouped(self, weight: Tensor) -> Tensor:
        """Returns weights of the convolution's shape as ``(groups, D, C_out / groups)``."""
        return weight.double().reshape(self.conv.groups, -1, self.size).mT


def sample_positions(
    targets: Tensor, per_image: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns image, row and column of positions drawn without repetition, ``(M,)`` each.

    Args:
        targets: ``(N, C, H, W)``; only shape and device count.
        per_image: How many of each image at most.
        generator: On the CPU.
    """
    images, _, height, width = targets.shape
    area = height * width
    if per_image >= area:
        chosen = torch.arange(area).expand(images, area)
    else:
        chosen = torch.rand(images, area, generator=generator).topk(per_image, dim=1).indices
    image = torch.arange(images).unsqueeze(1).expand_as(chosen)
    flat = chosen.flatten().to(targets.device)
    return image.flatten().to(targets.device), flat // width, flat % width
