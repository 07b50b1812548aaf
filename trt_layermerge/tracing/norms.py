"""Normalisations of libraries: batch normalisations are made plain ones in a traced copy.

Those that take their statistics from each image are not linear: they are recorded as one call, so
that they go by their own name.
"""

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


IMAGE_NORMS = {
    "LayerNorm": "a layer normalisation",
    "GroupNorm": "a group normalisation",
    "InstanceNorm": "an instance normalisation",
    "RmsNorm": "an RMS normalisation",
    "SimpleNorm": "a normalisation by variance",
    "LocalResponseNorm": "a local response normalisation",
    "GlobalResponseNorm": "a global response normalisation",
    "GRN": "a global response normalisation",
    "FilterResponseNorm": "a filter response normalisation",
    "EvoNorm": "an EvoNorm",
}
"""What a class or a function is whose name begins so, in capitals or not, ``_`` aside."""


def image_norm(name: str) -> str | None:
    """Returns in words which normalisation by each image's own statistics has a name, or None."""
    plain = name.replace("_", "").lower()
    found = (words for key, words in IMAGE_NORMS.items() if plain.startswith(key.lower()))
    return next(found, None)


def is_image_norm(module: nn.Module) -> bool:
    """Whether a module is called like one, and holds no other layers than activations."""
    named = image_norm(type(module).__name__) is not None
    return named and all(_is_part(child) for child in module.children())


def _is_part(module: nn.Module) -> bool:
    return not list(module.children()) and not list(module.parameters())


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
