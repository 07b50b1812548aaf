"""Layer graphs of published networks, written down by hand, without torch."""

from __future__ import annotations

from dataclasses import replace

from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import ConvUnit, Residual, Segment, Shortcut, UnitNodes


class Chain:
    """Grows a graph unit by unit, the way a paper's table of layers reads."""

    def __init__(self, channels: int, size: int) -> None:
        self.channels, self.size = channels, size
        self.units: list[ConvUnit] = []
        self.residuals: list[Residual] = []
        self.segments: list[Segment] = []
        self.head: int | None = None

    def conv(
        self,
        out: int,
        kernel: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        activation: str | None = "relu",
    ) -> Chain:
        """Adds one square convolution with same padding."""
        spec = ConvSpec(
            self.channels,
            out,
            (kernel, kernel),
            (stride, stride),
            (kernel // 2,) * 4,
            (1, 1),
            self.channels if depthwise else 1,
            self.size,
            self.size,
            activation,
        )
        index = len(self.units)
        names = UnitNodes(f"c{index}", f"b{index}", f"s{index}", f"o{index}")
        self.units.append(
            ConvUnit(index, f"conv{index}", None, activation, spec, names, weight_l1=index % 5 + 1)
        )
        self.channels, self.size = out, spec.out_size[0]
        return self

    def residual(self, start: int) -> Chain:
        """Adds the input of unit ``start`` to the output so far, projected where shapes differ."""
        first, last = self.units[start].spec, self.units[-1]
        stride = first.height // self.size
        projection = None
        if (first.in_channels, first.height) != (self.channels, self.size):
            projection = replace(
                first,
                out_channels=self.channels,
                kernel=(1, 1),
                stride=(stride, stride),
                padding=(0, 0, 0, 0),
                groups=1,
                activation=None,
            )
        name = None if projection is None else f"projection{start}"
        self.residuals.append(
            Residual(start, len(self.units), (Shortcut(name, None, projection, f"p{start}"),))
        )
        self.units[-1] = replace(last, spec=replace(last.spec, residual=True))
        return self

    def barrier(self) -> Chain:
        """Ends the segment."""
        start = self.segments[-1].end if self.segments else 0
        self.segments.append(Segment(start, len(self.units)))
        return self

    def graph(self) -> LayerGraph:
        """Returns the finished graph."""
        self.barrier()
        return LayerGraph(
            tuple(self.units),
            tuple(s for s in self.segments if s.start < s.end),
            tuple(self.residuals),
            (),
            (1, self.units[0].spec.in_channels, self.units[0].spec.height, 224),
            self.head,
        )


def resnet34() -> LayerGraph:
    """Basic blocks 3, 4, 6, 3 behind a stem and a max-pool."""
    chain = Chain(3, 224).conv(64, 7, 2).barrier()
    chain.size = 56
    for width, repeats in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(repeats):
            start = len(chain.units)
            chain.conv(width, 3, 2 if i == 0 and width > 64 else 1).conv(width, 3).residual(start)
    return chain.graph()


def resnet50() -> LayerGraph:
    """Bottlenecks 3, 4, 6, 3 with the stride in the 3x3 convolution."""
    chain = Chain(3, 224).conv(64, 7, 2).barrier()
    chain.size = 56
    for width, repeats in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(repeats):
            start, stride = len(chain.units), 2 if i == 0 and width > 64 else 1
            chain.conv(width, 1).conv(width, 3, stride).conv(4 * width, 1).residual(start)
    return chain.graph()


def mobilenet_v2() -> LayerGraph:
    """Inverted residuals of MobileNetV2-1.0, stem and head included."""
    chain = Chain(3, 224).conv(32, 3, 2, activation="relu6")
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, width, repeats, first_stride in stages:
        for i in range(repeats):
            start, entering = len(chain.units), chain.channels
            stride = first_stride if i == 0 else 1
            if expansion > 1:
                chain.conv(entering * expansion, 1, activation="relu6")
            chain.conv(chain.channels, 3, stride, depthwise=True, activation="relu6")
            chain.conv(width, 1, activation=None)
            if stride == 1 and entering == width:
                chain.residual(start)
    chain.head = len(chain.units)
    return chain.conv(1280, 1, activation="relu6").graph()
