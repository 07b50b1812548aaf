"""Exact algebra of convolutions without padding, in float64.

A ``Kernel`` is the affine map

    y[o, i] = b[o] + Σ_{c, t} W[o, c, t] · x[c, s·i + d·t]

with ``i`` and ``t`` running over rows and columns. Composition, sums and batch normalisation of
such maps are such maps again. Everything here is pure; nothing is rounded but by float64 itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trt_layermerge.core.conv import Pair

ONE: Pair = (1, 1)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weights of a convolution without padding.

    Attributes:
        weight: ``(C_out, C_in / groups, kh, kw)``, float64.
        bias: ``(C_out,)``, float64.
        stride: Step as (vertical, horizontal).
        dilation: Distance of taps as (vertical, horizontal).
        groups: Number of contiguous channel groups.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = ONE
    dilation: Pair = ONE
    groups: int = 1

    @property
    def taps(self) -> Pair:
        """Number of taps as (rows, columns)."""
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @property
    def extent(self) -> Pair:
        """Rows and columns that the dilated kernel spans."""
        (kh, kw), (dh, dw) = self.taps, self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    @property
    def in_channels(self) -> int:
        """Channels of the input map."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def out_channels(self) -> int:
        """Channels of the output map."""
        return int(self.weight.shape[0])


def scale_kernel(scale: Tensor, shift: Tensor) -> Kernel:
    """Returns y[c] = scale[c] · x[c] + shift[c] as a depthwise kernel of one tap."""
    channels = scale.numel()
    weight = scale.double().reshape(channels, 1, 1, 1)
    return Kernel(weight, shift.double(), groups=channels)


def identity_kernel(channels: int, device: torch.device | None = None) -> Kernel:
    """Returns y = x as a depthwise kernel of one tap."""
    return scale_kernel(torch.ones(channels, device=device), torch.zeros(channels, device=device))


def bn_affine(
    mean: Tensor, variance: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Returns batch normalisation in eval mode as a scale a and a shift c, float64.

    a = γ / √(σ² + ε),  c = β − a·μ; γ = 1 and β = 0 where they are None.

    Args:
        mean: μ, ``(C,)``, as the other tensors.
        variance: σ².
        scale: γ, or None.
        shift: β, or None.
        eps: ε.
    """
    a = (variance.double() + eps).rsqrt()
    if scale is not None:
        a = a * scale.double()
    c = -a * mean.double()
    return a, c if shift is None else c + shift.double()


def fold_bn(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a convolution with the batch normalisation behind it folded in.

    W'[o] = a[o]·W[o],  b'[o] = a[o]·b[o] + c[o], with a and c of ``bn_affine``; float64.

    Args:
        weight: ``(C_out, C_in / groups, kh, kw)``.
        bias: ``(C_out,)``, or None for zero.
        mean: μ of the normalisation, ``(C_out,)``, as its other tensors.
        variance: σ².
        scale: γ, or None.
        shift: β, or None.
        eps: ε.
    """
    a, c = bn_affine(mean, variance, scale, shift, eps)
    folded = weight.double() * a.reshape(-1, 1, 1, 1)
    return folded, c if bias is None else c + a * bias.double()


def compose(first: Kernel, second: Kernel) -> Kernel:
    """Returns the kernel that equals ``second`` after ``first``, exactly, where nothing is padded.

    With taps of the first at multiples of d1 and of the second at multiples of s1·d2, on the
    coarsest grid d' that meets both (per axis d' = gcd of the steps of kernels with several taps):

        W'[o, i, (d1·t + s1·d2·u) / d'] += Σ_c W2[o, c, u] · W1[c, i, t]
        b'[o] = b2[o] + Σ_{c, u} W2[o, c, u] · b1[c]        s' = s1·s2

    Contiguous groups compose to gcd(g1, g2) groups.

    Raises:
        ValueError: If the channels do not fit.
    """
    if first.out_channels != second.in_channels:
        raise ValueError(f"{first.out_channels} channels do not feed {second.in_channels}")
    groups = math.gcd(first.groups, second.groups)
    if groups not in (first.groups, second.groups):
        second = expand_groups(second, groups)
    (kh1, kh2, fh1, fh2, dh), (kw1, kw2, fw1, fw2, dw) = (_grid(first, second, a) for a in (0, 1))
    rows, columns = 1 + fh1 * (kh1 - 1) + fh2 * (kh2 - 1), 1 + fw1 * (kw1 - 1) + fw2 * (kw2 - 1)
    channels = second.out_channels, first.in_channels // groups
    merged = first.weight.new_zeros(*channels, rows, columns)
    for u in range(kh2):
        for v in range(kw2):
            term = _mix(first, second, second.weight[:, :, u, v])
            top, left = u * fh2, v * fw2
            bottom, right = top + fh1 * (kh1 - 1) + 1, left + fw1 * (kw1 - 1) + 1
            merged[:, :, top:bottom:fh1, left:right:fw1] += term
    total = second.weight.sum((2, 3)).reshape(second.groups, -1, second.weight.shape[1])
    through = (total @ first.bias.reshape(second.groups, -1, 1)).flatten()
    stride = (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1])
    return Kernel(merged, second.bias + through, stride, (dh, dw), groups)


def add_shortcut(branch: Kernel, path: Kernel, offset: Pair = (0, 0)) -> Kernel:
    """Returns branch + path, where the path's first tap lies ``offset`` behind the branch's.

    W'[o, c, (offset + d_path·t) / d_branch] += W_path[o, c, t],  b' = b_branch + b_path, on the
    branch's taps and stride, in gcd(g_branch, g_path) groups. An identity is one tap of ones on
    each channel (``identity_kernel``); a projection is its own kernel.

    Args:
        branch: What it is added to.
        path: The shortcut.
        offset: Rows and columns of the branch's input, neither negative.

    Raises:
        ValueError: If strides or channels differ, or the path leaves the branch's taps.
    """
    shapes = (branch.stride, branch.in_channels, branch.out_channels)
    if shapes != (path.stride, path.in_channels, path.out_channels):
        raise ValueError("the shortcut and its branch have different strides or channels")
    groups = math.gcd(branch.groups, path.groups)
    branch, path = expand_groups(branch, groups), expand_groups(path, groups)
    rows, columns = (_placed(branch, path, offset[axis], axis) for axis in (0, 1))
    weight = branch.weight.clone()
    weight[:, :, rows, columns] += path.weight
    return replace(branch, weight=weight, bias=branch.bias + path.bias)


def expand_groups(kernel: Kernel, groups: int) -> Kernel:
    """Returns the same map with fewer groups: the weights between merged groups are zero.

    Raises:
        ValueError: If ``groups`` does not divide the kernel's groups.
    """
    if groups == kernel.groups:
        return kernel
    if kernel.groups % groups:
        raise ValueError(f"{kernel.groups} groups cannot be joined to {groups}")
    joined = kernel.groups // groups
    split = kernel.weight.reshape(groups, joined, -1, *kernel.weight.shape[1:])
    weight = split.new_zeros(*split.shape[:3], joined, *split.shape[3:])
    for j in range(joined):
        weight[:, j, :, j] = split[:, j]
    weight = weight.flatten(3, 4).flatten(0, 2)
    return replace(kernel, weight=weight, groups=groups)


def _mix(first: Kernel, second: Kernel, tap: Tensor) -> Tensor:
    """Returns Σ_c tap[o, c] · W1[c, i, t], ``(C_out, C_in / groups, kh1, kw1)``.

    One group count divides the other, so each finer group meets one coarser group and nothing has
    to be expanded.
    """
    fine, coarse = max(first.groups, second.groups), min(first.groups, second.groups)
    out, inner, taps = len(tap) // second.groups, first.weight.shape[1], first.weight.shape[2:]
    rows = first.weight.reshape(fine, -1, inner * taps.numel())
    outer = tap.reshape(second.groups, out, fine // second.groups, -1)
    product = outer.transpose(1, 2).reshape(fine, out, -1) @ rows
    split = product.reshape(second.groups, fine // second.groups, out, inner, *taps)
    return split.transpose(1, 2).reshape(len(tap), first.in_channels // coarse, *taps)


def _grid(first: Kernel, second: Kernel, axis: int) -> tuple[int, int, int, int, int]:
    """Returns taps of both, their steps on the common grid, and the grid's own step."""
    k1, k2 = first.taps[axis], second.taps[axis]
    d1, d2 = first.dilation[axis], first.stride[axis] * second.dilation[axis]
    step = math.gcd(d1 if k1 > 1 else 0, d2 if k2 > 1 else 0) or 1
    return k1, k2, d1 // step if k1 > 1 else 1, d2 // step if k2 > 1 else 1, step


def _placed(branch: Kernel, path: Kernel, offset: int, axis: int) -> slice:
    """Returns which taps of the branch the path's taps fall on."""
    taps, grid = path.taps[axis], branch.dilation[axis]
    step = path.dilation[axis] if taps > 1 else grid
    first, last = offset, offset + step * (taps - 1)
    if first < 0 or first % grid or step % grid or last // grid >= branch.taps[axis]:
        raise ValueError("the shortcut does not lie on the taps of its branch")
    return slice(first // grid, last // grid + 1, step // grid)
