"""What counts as the same answer, for every kind of outputs, by hand."""

import numpy as np
import pytest

from trt_layermerge.core.agreement import agreements, agreements_of, distances, right


def test_classes_agree_by_their_largest():
    reference = np.float32([[1, 0], [0, 1], [3, 2]])
    found = np.float32([[9, 0], [2, 1], [2.1, 2]])
    assert agreements(reference, found, "classes").tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_number_is_judged_by_its_error_and_its_sign(shape):
    reference = np.float32([2, -2, 2, -2, 0.01, 0.0]).reshape(shape)  # root mean square 1.63
    found = np.float32([2.1, -2.1, 2.2, 2, -0.01, 1e-9]).reshape(shape)
    assert agreements(reference, found, "values").tolist() == [1, 1, 0, 0, 0, 1]


def test_one_output_that_is_wrong_by_almost_all_does_not_agree():
    reference = np.random.default_rng(0).normal(3, 1, (100, 1))
    assert not agreements(reference, 0.001 * reference, "values").any()
    assert agreements(reference, reference, "values").all()


def test_each_quantity_of_a_regression_has_a_scale_of_its_own():
    """An angle in radians beside a width in pixels: the width's size hides nothing."""
    reference = np.float32([[0.1, 300], [-0.1, 300]])
    found = np.float32([[-0.1, 300], [-0.1, 299]])
    assert agreements(reference, found, "values").tolist() == [0.5, 1]
    assert agreements(reference, found, "classes").tolist() == [1, 1]


def test_pixels_are_counted_one_by_one():
    reference = np.zeros((1, 2, 2, 2))
    reference[0, 0] = 1
    found = reference.copy()
    found[0, 1, 0, 0] = 1.3  # another class
    found[0, 0, 1, 1] = 0.001  # the same class, and almost all of it lost
    assert agreements(reference, found, "classes").tolist() == [0.5]
    heat = np.ones((2, 1, 2, 2))
    wrong = heat.copy()
    wrong[1, 0, 0, 0] = 2
    assert agreements(heat, wrong, "values").tolist() == [1, 0.75]


def test_labels_agree_by_their_sign_and_whole_numbers_by_being_the_same():
    reference, found = np.float32([[1, -1, 2, -2]]), np.float32([[3, 1, 0.1, -9]])
    assert agreements(reference, found, "labels").tolist() == [0.75]
    numbers, others = np.array([[[1, 2], [3, 4]]]), np.array([[[1, 2], [3, 5]]])
    assert agreements(numbers, others, "indices").tolist() == [0.75]


def test_probabilities_agree_about_one_half():
    reference = np.float32([[0.9, 0.45, 0.45, 1e-9]])
    found = np.float32([[0.7, 0.55, 0.4, 1e-5]])  # too far, another side, near, near
    assert agreements(reference, found, "probabilities").tolist() == [0.5]
    expected = 0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3)
    far = distances(reference[:, :1], found[:, :1], "probabilities")
    np.testing.assert_allclose(far, [expected], rtol=1e-6)
    # Of almost nothing, ten thousand times as much is almost nothing.
    assert distances(reference[:, 3:], found[:, 3:], "probabilities")[0] < 2e-5
    assert distances(np.ones((1, 1)), np.zeros((1, 1)), "probabilities")[0] > 10


def test_of_several_outputs_the_worst_of_each_image_counts():
    reference = {"a": np.float32([[1, 0], [1, 0]]), "b": np.float32([[1.0], [1.0]])}
    found = {"a": np.float32([[1, 0], [0, 1]]), "b": np.float32([[2.0], [1.0]])}
    kinds = {"a": "classes", "b": "values"}
    assert agreements_of(reference, found, kinds).tolist() == [0, 0]
    assert agreements_of(reference, reference, kinds).tolist() == [1, 1]


def test_pixels_that_belong_to_no_class_do_not_count_as_right_or_wrong():
    maps = np.zeros((2, 3, 1, 2))
    maps[:, 1] = 1
    assert right(maps, np.array([[[1, 255]], [[1, 0]]])).tolist() == [1, 0.5]
    assert right(maps[:1], np.array([[[255, 255]]])).tolist() == [0]


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (2, 3, 2, 2)])
def test_what_is_not_finite_agrees_with_nothing(shape, kind):
    reference = np.ones(shape)
    found = reference.copy()
    found[0] = np.nan
    assert agreements(reference, found, kind).tolist() == [0, 1]
