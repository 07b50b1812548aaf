"""The kept units of a block and the shortcuts inside it, which merge into one convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trt_layermerge.blocks.algebra import (
    Kernel,
    add_shortcut,
    compose,
    expand_groups,
    identity_kernel,
)
from trt_layermerge.blocks.layers import (
    ConvNorm,
    Start,
    conv_norm,
    conv_of,
    kernel_of,
    norm_copy,
    zero_pad,
)
from trt_layermerge.blocks.relaxed import M, RelaxedBlock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import ConvSpec, Pair
from trt_layermerge.core.geometry import ONE, Apply, Close, Open, Step, composition
from trt_layermerge.core.unit import Residual, Shortcut
from trt_layermerge.tracing import TracedNetwork
from trt_layermerge.tracing.forms import weight_of


class ComposedBlock(RelaxedBlock):
    """The kept units without padding and activation, and the shortcuts inside, aligned to them.

    All zero padding stands at the input. Nothing here is nonlinear in eval mode, but for what
    ``hold`` puts into ``held``.

    Args:
        traced: The original network; its weights are copied.
        candidate: Which units are kept.

    Attributes:
        held: Modules behind steps, by the step's number.
    """

    def __init__(self, traced: TracedNetwork, candidate: Candidate) -> None:
        super().__init__(candidate)
        found = composition(traced.graph, candidate.block, candidate.kept)
        self.steps = found.steps
        self.padding = zero_pad(found.spec.padding) if found.spec else nn.Identity()
        self.units = nn.ModuleDict()
        self.shortcuts = nn.ModuleDict()
        self.held = nn.ModuleDict()
        self._removed = {
            str(_last_step(self.steps, unit)): name
            for unit in candidate.kept
            if (name := traced.graph.units[unit].activation) and unit != candidate.block.end - 1
        }
        for step in self.steps:
            if isinstance(step, Apply):
                self.units[_unit_key(step.unit)] = unit_copy(traced, step.unit)
            elif isinstance(step, Close):
                paths = [_shortcut_copy(traced, s) for s in step.residual.shortcuts]
                self.shortcuts[_residual_key(step.residual)] = nn.ModuleList(paths)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``."""
        x = self.padding(x)
        begun: list[Tensor] = []
        for number, step in enumerate(self.steps):
            if isinstance(step, Open):
                begun.append(x)
            elif isinstance(step, Apply):
                x = self.unit(step.unit)(x)
            else:
                skip = self._shortcut_sum(step, begun.pop())
                x = skip if step.empty else x + skip
            if str(number) in self.held:
                x = self.held[str(number)](x)
        return x

    def unit(self, index: int) -> ConvNorm:
        """Returns a kept unit."""
        unit = self.units[_unit_key(index)]
        assert isinstance(unit, ConvNorm)
        return unit

    def paths(self, residual: Residual) -> list[nn.Module]:
        """Returns the shortcuts of a residual inside the block, in order."""
        paths = self.shortcuts[_residual_key(residual)]
        assert isinstance(paths, nn.ModuleList)
        return list(paths)

    @property
    def last(self) -> ConvNorm | None:
        """The last kept unit; None where a shortcut that computes something follows it."""
        for step in reversed(self.steps):
            if isinstance(step, Apply):
                return self.unit(step.unit)
            if isinstance(step, Close) and step.empty and not _hands_on(step.residual):
                return None
        return None

    def hold(self, make: Callable[[str], M]) -> list[M]:
        """Puts modules behind the kept units, or the additions that end with them; returns them.

        Each takes the place of an activation but the block's own. Names and values of the state
        dict stay as they are.
        """
        held = {step: make(name) for step, name in self._removed.items()}
        self.held.update(held)
        return list(held.values())

    def kernel(self) -> Kernel | None:
        """Returns the kernel of units and shortcuts, inner residuals first; None for identity."""
        kernel: Kernel | None = None
        begun: list[Kernel | None] = []
        for step in self.steps:
            if isinstance(step, Open):
                begun.append(kernel)
                kernel = None
            elif isinstance(step, Apply):
                kernel = _after(kernel, kernel_of(self.unit(step.unit)))
            else:
                fused = self._closed(step, kernel)
                kernel = begun.pop() if fused is None else _after(begun.pop(), fused)
        if kernel is None:
            return None
        return expand_groups(kernel, self.candidate.convs[0].groups)

    def collapsed(self) -> nn.Module:
        """Returns a convolution, a ``ZeroPad2d`` before it where padding is uneven; or identity."""
        kernel = self.kernel()
        if kernel is None:
            return nn.Identity()
        return conv_of(kernel, self.candidate.convs[0].padding, next(self.parameters()))

    def _shortcut_sum(self, step: Close, x: Tensor) -> Tensor:
        """Returns the sum of a residual's shortcuts, of the size that its branch puts out."""
        rows, columns = ((x.shape[2 + a] - step.extent[a]) // step.stride[a] + 1 for a in (0, 1))
        total: Tensor | None = None
        for path, shortcut, (top, left) in zip(
            self.paths(step.residual), step.residual.shortcuts, step.offsets, strict=True
        ):
            height, width = _seen(shortcut, step.stride, rows, columns)
            value = path(x[:, :, top : top + height, left : left + width])
            total = value if total is None else total + value
        assert total is not None
        return total

    def _closed(self, step: Close, branch: Kernel | None) -> Kernel | None:
        """Returns a branch with its residual's shortcuts added; None for an identity alone."""
        modules = self.paths(step.residual)
        if branch is None and _hands_on(step.residual):
            return None
        device = next(self.parameters(), torch.zeros(())).device
        paths = [
            (_path_kernel(module, step.channels, device), offset)
            for module, offset in zip(modules, step.offsets, strict=True)
        ]
        if branch is None:
            paths.sort(key=lambda p: p[0].extent, reverse=True)
            branch = paths.pop(0)[0]
        for path, offset in paths:
            branch = add_shortcut(branch, path, offset)
        return branch


def unit_copy(traced: TracedNetwork, index: int) -> ConvNorm:
    """Returns a unit's convolution, without padding, and its normalisation, copied."""
    unit = traced.graph.conv_unit(index)
    return _copied(traced, unit.name, unit.bn, unit.spec)


def _shortcut_copy(traced: TracedNetwork, shortcut: Shortcut) -> nn.Module:
    """Returns a projection, a batch normalisation, or an identity."""
    if shortcut.conv is not None and shortcut.spec is not None:
        return _copied(traced, shortcut.conv, shortcut.bn, shortcut.spec)
    norm = _submodule(traced, shortcut.bn)
    return nn.Identity() if norm is None else norm_copy(norm)


def _copied(traced: TracedNetwork, conv: str, norm: str | None, spec: ConvSpec) -> ConvNorm:
    module = traced.module.get_submodule(conv)
    assert isinstance(module, nn.Conv2d)
    start = Start(weight_of(module), module.bias, _submodule(traced, norm))
    return conv_norm(spec, start, module.weight)


def _submodule(traced: TracedNetwork, name: str | None) -> nn.Module | None:
    return None if name is None else traced.module.get_submodule(name)


def _path_kernel(module: nn.Module, channels: int, device: torch.device) -> Kernel:
    if isinstance(module, ConvNorm | nn.BatchNorm2d):
        return kernel_of(module)
    return identity_kernel(channels, device)


def _after(first: Kernel | None, second: Kernel) -> Kernel:
    return second if first is None else compose(first, second)


def _last_step(steps: Sequence[Step], unit: int) -> int:
    """Returns the number of the last step of a unit: itself, or an addition that ends with it."""
    number = next(n for n, s in enumerate(steps) if isinstance(s, Apply) and s.unit == unit)
    while number + 1 < len(steps):
        following = steps[number + 1]
        if isinstance(following, Apply | Open) or following.residual.end != unit + 1:
            break
        number += 1
    return number


def _seen(shortcut: Shortcut, stride: Pair, rows: int, columns: int) -> Pair:
    """Returns how many rows and columns a shortcut reads to put out ``rows`` × ``columns``."""
    height, width = ONE if shortcut.spec is None else shortcut.spec.extent
    return (rows - 1) * stride[0] + height, (columns - 1) * stride[1] + width


def _hands_on(residual: Residual) -> bool:
    """Whether the shortcuts alone are the identity."""
    return len(residual.shortcuts) == 1 and residual.shortcuts[0].identity


def _unit_key(index: int) -> str:
    return f"u{index}"


def _residual_key(residual: Residual) -> str:
    return f"r{residual.start}_{residual.end}"
