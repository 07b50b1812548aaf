"""Proof in figures that the merged network computes what the relaxed one does."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.errors import UsageError
from trt_layermerge.merge.collapse import collapse
from trt_layermerge.merge.relax import RelaxedNet
from trt_layermerge.merge.surgery import block_key, block_path

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}
EXACT_IMAGES = 2
ROUNDING = {torch.float32: 2.0**-23, torch.float64: 1e-10}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison over a whole output, borders included.

    Attributes:
        block: Name of the block, such as ``b3_5``, ``network`` for outputs of the whole, or
            ``weights`` for its tensors against the ones merged in float64.
        kind: Kind of the candidate, or ``whole``.
        dtype: Type in which both sides were computed.
        max_abs_error: Largest difference.
        max_rel_error: Largest difference over the largest magnitude of the relaxed output.
        tolerance: What ``max_rel_error`` may be.
    """

    block: str
    kind: str
    dtype: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; a value that is no number is not."""
        return self.max_rel_error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Certificate:
    """Every comparison of a merge.

    Attributes:
        checks: The network and each changed block in the type of the merged network; the same in
            float64 with the relaxed network merged anew in float64, where rounding hides nothing;
            and the merged network's tensors against those.
    """

    checks: tuple[Check, ...]

    @property
    def max_rel_error(self) -> float:
        """The largest relative error of the network as it is, and of its blocks."""
        return max(c.max_rel_error for c in self.checks if c.dtype == self.checks[0].dtype)

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its tolerance."""
        return all(c.ok for c in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {
            "ok": self.ok,
            "max_rel_error": self.max_rel_error,
            "checks": [{**asdict(c), "ok": c.ok} for c in self.checks],
        }


@torch.no_grad()
def certify(relaxed: RelaxedNet, merged: nn.Module, example_inputs: Tensor) -> Certificate:
    """Returns how far a merged network is from its relaxed one in eval mode; both stay untouched.

    Tolerances, relative to the largest output: 1e-4 in float32, 1e-10 in float64; for the merged
    tensors against those merged in float64, 2⁻²³ and 1e-10. Each block is fed what reaches it in
    the relaxed network.

    Args:
        relaxed: What was merged.
        merged: What ``collapse`` made of it.
        example_inputs: Images ``(N, C, H, W)``, better real ones than noise. All serve in the
            network's own type, the first two in float64.

    Raises:
        UsageError: If the networks are neither in float32 nor in float64.
    """
    like = next(relaxed.parameters())
    dtype, images = like.dtype, example_inputs.to(like.device, like.dtype)
    if dtype not in TOLERANCES:
        raise UsageError(
            f"a network in {dtype} cannot be certified; merge it in float32 (.float())"
        )
    relaxed = copy.deepcopy(relaxed).eval()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        checks = _compare(relaxed, copy.deepcopy(merged).eval(), images)
        exact = collapse(relaxed.double())
        if dtype != torch.float64:
            checks += _compare(relaxed, exact, images[:EXACT_IMAGES].double())
    checks.append(_compare_weights(merged, exact, ROUNDING[dtype]))
    return Certificate(tuple(checks))


def _compare(relaxed: RelaxedNet, merged: nn.Module, x: Tensor) -> list[Check]:
    """Returns the comparison of the network, then of each changed block on what reaches it."""
    modules = dict(merged.named_modules())
    checks: list[Check] = []

    def compare(block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(block, RelaxedBlock)
        place = block.candidate.block
        counterpart = modules.get(block_path(place), nn.Identity())
        checks.append(_check(block_key(place), block.candidate.kind, output, counterpart(args[0])))

    handles = [b.register_forward_hook(compare) for b in relaxed.blocks.values()]
    expected = relaxed(x)
    for handle in handles:
        handle.remove()
    return [_check("network", "whole", expected, merged(x)), *checks]


def _compare_weights(merged: nn.Module, exact: nn.Module, tolerance: float) -> Check:
    """Returns how far the merged tensors are from the exact ones, each relative to its largest."""
    found, wanted = merged.state_dict(), exact.state_dict()
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
        return Check("weights", "whole", "float64", math.inf, math.inf, tolerance)
    errors = [
        _errors(wanted[k], found[k].to(wanted[k])) for k in wanted if found[k].is_floating_point()
    ]
    absolute = max((e[0] for e in errors), default=0.0)
    relative = max((e[1] for e in errors), default=0.0)
    return Check("weights", "whole", "float64", absolute, relative, tolerance)


def _check(block: str, kind: str, expected: Tensor, actual: Tensor) -> Check:
    dtype, tolerance = str(expected.dtype).removeprefix("torch."), TOLERANCES[expected.dtype]
    if expected.shape != actual.shape:
        return Check(block, kind, dtype, math.inf, math.inf, tolerance)
    return Check(block, kind, dtype, *_errors(expected, actual), tolerance)


def _errors(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Returns the largest difference, absolute and relative to the largest expected magnitude.

    Infinite where either side has values that are no numbers.
    """
    if not (expected.isfinite().all() and actual.isfinite().all()):
        return math.inf, math.inf
    absolute, largest = float((expected - actual).abs().max()), float(expected.abs().max())
    return absolute, absolute / largest if largest else absolute
