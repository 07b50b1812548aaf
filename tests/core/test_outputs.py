"""Names and kinds of outputs, by hand."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest

from trt_layermerge.core.outputs import judged_by, kind_of, kinds_of, named
from trt_layermerge.errors import UnsupportedModelError, UsageError

ONE, TWO, THREE = (np.full((2, 3), n, np.float32) for n in (1, 2, 3))
IMAGE = (2, 3, 8, 9)
Pair = namedtuple("Pair", "boxes scores")


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (ONE, ["logits"]),
        (OrderedDict(out=ONE, aux=TWO), ["out", "aux"]),
        ([ONE, TWO], ["output_0", "output_1"]),
        ((ONE, [TWO, THREE]), ["output_0", "output_1_0", "output_1_1"]),
        ({"maps": (ONE, TWO), "n": None, "word": "x"}, ["maps_0", "maps_1"]),
        (Pair(ONE, TWO), ["boxes", "scores"]),
        ([{"a": ONE}, {"a": TWO}], ["0_a", "1_a"]),
        ({"a_0": ONE, "a": [TWO]}, ["a_0", "a_0_1"]),
        ({1: ONE}, ["1"]),
        ("nothing", []),
    ],
)
def test_tensors_are_called_by_what_leads_to_them(output, names):
    found = named(output)
    assert list(found) == names
    values = [float(value[0, 0]) for value in found.values()]
    assert values == sorted(values)  # in the order in which they stand


def test_names_of_a_file_take_the_place_of_ours_where_there_are_as_many():
    assert list(named((ONE, TWO), ["boxes", "scores"])) == ["boxes", "scores"]
    assert list(named(ONE, ["boxes", "scores"])) == ["logits"]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2, 10), "classes"),
        ((2, 1), "values"),
        ((2,), "values"),
        ((2, 21, 8, 9), "classes"),  # a class map of the image's size
        ((2, 21, 4, 4), "values"),  # features
        ((2, 3, 8, 9), "values"),  # another image
        ((2, 1, 8, 9), "values"),  # a heat map
        ((2, 85, 100), "values"),  # boxes
    ],
)
def test_shapes_tell_the_kind(shape, kind):
    assert kind_of(shape, IMAGE) == kind


@pytest.mark.parametrize(
    ("task", "kinds"),
    [
        ("regression", ("values",) * 5),
        ("multilabel", ("labels",) * 5),
        ("classification", ("classes", "labels", "labels", "values", "values")),
        ("segmentation", ("classes", "labels", "labels", "classes", "labels")),
    ],
)
def test_a_task_says_what_shapes_cannot(task, kinds):
    shapes = ((2, 10), (2, 1), (2,), (2, 3, 4, 4), (2, 1, 4, 4))
    assert tuple(kind_of(shape, IMAGE, task) for shape in shapes) == kinds


def test_tasks_by_name_and_whole_numbers():
    outputs = {"size": ONE, "label": TWO, "index": np.zeros((2, 4), np.int64)}
    found = kinds_of(outputs, IMAGE, {"size": "regression"})
    assert found == {"size": "values", "label": "classes", "index": "indices"}
    assert judged_by(np.zeros(2), outputs, found) == "label"
    assert judged_by(np.zeros((2, 8, 9)), outputs, found) is None
    with pytest.raises(UsageError, match=r"task names sise, and .* size, label, index"):
        kinds_of(outputs, IMAGE, {"sise": "regression"})


@pytest.mark.parametrize("output", [np.zeros(()), np.zeros((7, 4))])
def test_outputs_that_do_not_follow_the_images_are_refused(output):
    with pytest.raises(UnsupportedModelError, match="the output anchors has the shape"):
        kinds_of({"logits": ONE, "anchors": output}, IMAGE)
    with pytest.raises(UnsupportedModelError, match="gives no tensors"):
        kinds_of({}, IMAGE)


def test_what_comes_from_a_sigmoid_is_probabilities_but_for_classes_and_regressions():
    outputs = {"one": np.zeros((2, 1), np.float32), "ten": np.zeros((2, 10), np.float32)}
    both = ("one", "ten")
    assert kinds_of(outputs, IMAGE, "auto", both) == {"one": "probabilities", "ten": "classes"}
    assert set(kinds_of(outputs, IMAGE, "multilabel", both).values()) == {"probabilities"}
    assert set(kinds_of(outputs, IMAGE, "regression", both).values()) == {"values"}
    assert kinds_of(outputs, IMAGE, "multilabel", ("one",))["ten"] == "labels"
