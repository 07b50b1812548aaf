"""Batch normalisations that libraries spell in their own way, made plain ones in a traced copy."""

from __future__ import annotations

from torch import Tensor, fx, nn

from trt_layermerge.tracing.prepare import has_hooks

_PARTS = ("drop", "act")
"""Children that run behind the normalisation, in order."""


class NormThenAct(nn.BatchNorm2d):
    """The normalisation of a timm ``BatchNormAct2d``, whose ``drop`` and ``act`` run on their own.

    Weights, statistics and qualified names stay those of the original module.
    """


class FrozenNorm(nn.BatchNorm2d):
    """A normalisation that training leaves alone: scale, shift and statistics are buffers.

    Bit-equal to torchvision's ``FrozenBatchNorm2d``, and to timm's without ``drop`` and ``act``;
    names stay those of the original module.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to x·s + (b - m·s), where s = w / √(v + eps)."""
        weight, bias, variance, mean = (
            getattr(self, name).reshape(1, -1, 1, 1)
            for name in ("weight", "bias", "running_var", "running_mean")
        )
        scale = weight * (variance + self.eps).rsqrt()
        shifted: Tensor = input * scale + (bias - mean * scale)
        return shifted


_PLAIN: dict[tuple[str, str], type[nn.BatchNorm2d]] = {
    ("timm", "BatchNormAct2d"): NormThenAct,
    ("timm", "SyncBatchNormAct"): NormThenAct,
    ("timm", "FrozenBatchNormAct2d"): FrozenNorm,
    ("torchvision", "FrozenBatchNorm2d"): FrozenNorm,
}
"""What remains of a class, told by package and name, when its ``drop`` and ``act`` are apart."""


def is_library_norm(module: nn.Module) -> bool:
    """Whether ``split_norms`` knows a module."""
    return _key(module) in _PLAIN and not has_hooks(module) and "forward" not in vars(module)


def split_norms(network: fx.GraphModule) -> None:
    """Makes the normalisations that a traced network calls plain ones, in place.

    What also runs inside a module that is recorded as one call stays as it is, since the code of
    that module calls it whole.
    """
    nodes = network.graph.find_nodes(op="call_module")
    calls = [(node, network.get_submodule(str(node.target))) for node in nodes]
    hidden = {part for _, module in calls for part in module.modules() if part is not module}
    split = [(n, m) for n, m in calls if is_library_norm(m) and m not in hidden]
    for node, module in split:
        last = node
        for name in _PARTS:
            if hasattr(module, name):
                with network.graph.inserting_after(last):
                    part = network.graph.call_module(f"{node.target}.{name}", (node,))
                last.replace_all_uses_with(part)
                part.args, last = (last,), part
    for module in {module for _, module in split}:
        _make_plain(module)
    network.recompile()


def _make_plain(module: nn.Module) -> None:
    plain = _PLAIN[_key(module)]
    if plain is FrozenNorm:
        vars(module).update(
            num_features=module.get_buffer("weight").numel(),
            momentum=0.1,
            affine=True,
            track_running_stats=False,
        )
    module.__class__ = plain


def _key(module: nn.Module) -> tuple[str, str]:
    kind = type(module)
    return kind.__module__.partition(".")[0], kind.__name__
