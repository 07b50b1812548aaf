"""What counts as the same answer, for every shape of outputs, by hand."""

import numpy as np
import pytest

from trt_layermerge.core.agreement import agreement, agreements


def test_classes_agree_by_their_largest():
    reference = np.float32([[1, 0], [0, 1], [3, 2]])
    found = np.float32([[9, 0], [2, 1], [2.1, 2]])
    assert agreements(reference, found).tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_number_is_judged_by_its_error_and_its_sign(shape):
    reference = np.float32([2, -2, 2, -2, 0.01, 0.0]).reshape(shape)  # root mean square 1.63
    found = np.float32([2.1, -2.1, 2.2, 2, -0.01, 1e-9]).reshape(shape)
    assert agreements(reference, found).tolist() == [1, 1, 0, 0, 0, 1]


def test_one_output_that_is_wrong_by_almost_all_does_not_agree():
    reference = np.random.default_rng(0).normal(3, 1, (100, 1))
    assert agreement(reference, 0.001 * reference) == 0
    assert agreement(reference, reference) == 1


def test_pixels_are_counted_one_by_one():
    reference = np.zeros((1, 2, 2, 2))
    reference[0, 0] = 1
    found = reference.copy()
    found[0, 1, 0, 0] = 1.3  # another class
    found[0, 0, 1, 1] = 0.001  # the same class, and almost all of it lost
    assert agreement(reference, found) == 0.5
    heat = np.ones((2, 1, 2, 2))
    wrong = heat.copy()
    wrong[1, 0, 0, 0] = 2
    assert agreements(heat, wrong).tolist() == [1, 0.75]


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (2, 3, 2, 2)])
def test_what_is_not_finite_agrees_with_nothing(shape):
    reference = np.ones(shape)
    found = reference.copy()
    found[0] = np.nan
    assert agreements(reference, found).tolist() == [0, 1]
