"""The algebra against torch's own convolutions, over whole outputs, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trt_layermerge.blocks.algebra import (
    Kernel,
    add_shortcut,
    compose,
    expand_groups,
    fold_bn,
    identity_kernel,
    scale_kernel,
)
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.conv import compose as compose_specs

TOLERANCE = 1e-12  # relative to the largest output, float64
PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)


def run(kernel: Kernel, x: Tensor) -> Tensor:
    """Applies a kernel with torch."""
    return F.conv2d(x, kernel.weight, kernel.bias, kernel.stride, 0, kernel.dilation, kernel.groups)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    scale = max(float(expected.abs().max()), 1.0)
    assert float((actual - expected).abs().max()) <= tolerance * scale


def random_kernel(
    spec: tuple[int, int, int], taps: tuple[int, int], seed: int, **geometry: tuple[int, int]
) -> Kernel:
    """Returns a normal kernel of (in, out, groups) channels."""
    c_in, c_out, groups = spec
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(c_out, c_in // groups, *taps, generator=generator, dtype=torch.float64)
    bias = torch.randn(c_out, generator=generator, dtype=torch.float64)
    return Kernel(weight, bias, groups=groups, **geometry)


def small(high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, high), st.integers(1, high))


groups_of_twelve = st.sampled_from([1, 2, 3, 4, 6, 12])
pads = st.tuples(*[st.integers(0, 3)] * 4)


@PROPERTY
@given(
    small(4), small(3), small(3), pads, groups_of_twelve,
    small(4), small(3), small(3), pads, groups_of_twelve, st.integers(0, 9),
)  # fmt: skip
def test_composition_equals_the_chain_with_hoisted_padding_and_has_the_geometry_of_core(
    k1, s1, d1, p1, g1, k2, s2, d2, p2, g2, seed
):
    first = random_kernel((12, 24, g1), k1, seed, stride=s1, dilation=d1)
    second = random_kernel((24, 12, g2), k2, seed + 1, stride=s2, dilation=d2)
    height, width = 31, 33
    spec1 = ConvSpec(12, 24, k1, s1, p1, d1, g1, height, width)
    spec2 = ConvSpec(24, 12, k2, s2, p2, d2, g2, *spec1.out_size)
    merged, spec = compose(first, second), compose_specs(spec1, spec2)
    assert (merged.taps, merged.stride, merged.dilation, merged.groups) == (
        spec.kernel, spec.stride, spec.dilation, spec.groups,
    )  # fmt: skip
    top, left, bottom, right = spec.padding
    x = torch.randn(2, 12, height, width, dtype=torch.float64)
    x = F.pad(x, (left, right, top, bottom))
    y = run(merged, x)
    assert y.shape[2:] == spec.out_size == spec2.out_size
    assert_close(y, run(second, run(first, x)))


def test_composition_by_hand_on_one_channel():
    first = Kernel(torch.tensor([[[[1.0, 2.0]]]]).double(), torch.tensor([3.0]).double())
    second = Kernel(torch.tensor([[[[10.0, 0.0, 1.0]]]]).double(), torch.tensor([5.0]).double())
    merged = compose(first, second)
    assert merged.weight.flatten().tolist() == [10, 20, 1, 2]
    assert merged.bias.item() == 3 * 11 + 5


def test_a_stride_spreads_the_taps_of_what_follows():
    first = Kernel(torch.ones(1, 1, 1, 2).double(), torch.zeros(1).double(), stride=(1, 3))
    second = Kernel(torch.tensor([[[[1.0, 2.0]]]]).double(), torch.zeros(1).double())
    merged = compose(first, second)
    assert merged.weight.flatten().tolist() == [1, 1, 0, 2, 2]
    assert merged.stride == (1, 3)


def test_depthwise_stays_depthwise_with_many_channels():
    first = random_kernel((960, 960, 960), (3, 3), 0)
    merged = compose(first, random_kernel((960, 960, 960), (3, 3), 1))
    assert merged.groups == 960
    assert merged.weight.shape == (960, 1, 5, 5)


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="6 channels do not feed 4"):
        compose(random_kernel((4, 6, 1), (1, 1), 0), random_kernel((4, 4, 1), (1, 1), 0))


@PROPERTY
@given(
    st.booleans(), st.booleans(), st.sampled_from([1e-5, 1e-3, 0.1]), groups_of_twelve,
    st.integers(0, 99),
)  # fmt: skip
def test_folding_equals_convolution_then_batch_norm(bias, affine, eps, groups, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(12, 24, 3, groups=groups, bias=bias).double().requires_grad_(False)
    bn = nn.BatchNorm2d(24, eps=eps, affine=affine).double().eval().requires_grad_(False)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.01, 2)
    if bn.affine:
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
    statistics = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    weight, shift = fold_bn(conv.weight, conv.bias, *statistics, bn.eps)
    x = torch.randn(2, 12, 6, 7, dtype=torch.float64)
    assert_close(F.conv2d(x, weight, shift, groups=groups), bn(conv(x)))
    wrong, wrong_shift = fold_bn(conv.weight, conv.bias, *statistics, 2 * bn.eps)
    difference = F.conv2d(x, wrong, wrong_shift, groups=groups) - bn(conv(x))
    assert float(difference.abs().max()) > 1e-9


@PROPERTY
@given(
    groups_of_twelve, groups_of_twelve, small(4), small(2), small(2), small(3),
    st.data(), st.integers(0, 9),
)  # fmt: skip
def test_a_shortcut_is_added_on_the_aligned_taps(g1, g2, taps, stride, dilation, path, data, seed):
    branch = random_kernel((12, 12, g1), taps, seed, stride=stride, dilation=dilation)
    path = (min(path[0], taps[0]), min(path[1], taps[1]))
    shortcut = random_kernel((12, 12, g2), path, seed + 1, stride=stride, dilation=dilation)
    first = [data.draw(st.integers(0, taps[a] - path[a])) for a in (0, 1)]
    offset = (first[0] * dilation[0], first[1] * dilation[1])
    x = torch.randn(2, 12, 15, 16, dtype=torch.float64)
    expected = run(branch, x)
    skip = run(shortcut, x[:, :, offset[0] :, offset[1] :])
    expected = expected + skip[:, :, : expected.shape[2], : expected.shape[3]]
    assert_close(run(add_shortcut(branch, shortcut, offset), x), expected)


def test_an_identity_on_a_depthwise_kernel_stays_depthwise():
    kernel = add_shortcut(random_kernel((8, 8, 8), (3, 3), 0), identity_kernel(8), (1, 1))
    assert kernel.groups == 8
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    expected = run(random_kernel((8, 8, 8), (3, 3), 0), x) + x[:, :, 1:-1, 1:-1]
    assert_close(run(kernel, x), expected)


@pytest.mark.parametrize(
    ("stride", "offset", "channels"),
    [((2, 2), (1, 1), 4), ((1, 1), (3, 0), 4), ((1, 1), (1, 1), 6)],
)
def test_shortcuts_that_do_not_fit_are_refused(stride, offset, channels):
    branch = random_kernel((4, 4, 1), (3, 3), 0, stride=stride)
    with pytest.raises(ValueError, match="shortcut"):
        add_shortcut(branch, identity_kernel(channels), offset)


def test_an_identity_off_the_dilated_taps_is_refused():
    branch = random_kernel((4, 4, 1), (2, 2), 0, dilation=(2, 2))
    with pytest.raises(ValueError, match="does not lie on the taps"):
        add_shortcut(branch, identity_kernel(4), (1, 1))


@pytest.mark.parametrize(("before", "after"), [(12, 12), (12, 6), (12, 1), (6, 3), (4, 2)])
def test_expanded_groups_are_the_same_map(before, after):
    kernel = random_kernel((12, 24, before), (3, 2), 0)
    expanded = expand_groups(kernel, after)
    assert expanded.weight.shape == (24, 12 // after, 3, 2)
    x = torch.randn(1, 12, 5, 5, dtype=torch.float64)
    assert_close(run(expanded, x), run(kernel, x))


def test_groups_cannot_be_split():
    with pytest.raises(ValueError, match="cannot be joined"):
        expand_groups(random_kernel((12, 12, 4), (1, 1), 0), 3)


def test_a_scale_is_a_depthwise_tap():
    kernel = scale_kernel(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.0]))
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    expected = x * torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1)
    assert_close(run(kernel, x), expected + torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1))
