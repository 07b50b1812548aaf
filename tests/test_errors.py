"""Exit codes travel between processes and come back as the error that they stand for."""

from __future__ import annotations

import pytest

from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    StickyDeviceError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
    error_of,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, UsageError),
        (3, UnsupportedModelError),
        (4, DeviceError),
        (7, CorruptInputError),
        (1, DeviceError),
        (137, DeviceError),
    ],
)
def test_the_error_of_a_code(code: int, kind: type[LayerMergeError]) -> None:
    error = error_of(code, "what happened")
    assert type(error) is kind
    assert str(error) == "what happened"


@pytest.mark.parametrize("kind", [UsageError, DeviceError, StickyDeviceError, UntrustedInputError])
def test_a_code_goes_there_and_back(kind: type[LayerMergeError]) -> None:
    assert error_of(kind.exit_code, "").exit_code == kind.exit_code
