"""The ways to replace a block: one file for each, everything about it inside.

A new kind is a new file here and a name in ``_KINDS``, or an object given to ``register``. No other
room asks for a kind by name.
"""

from __future__ import annotations

from trt_layermerge.kinds.candidates import enumerate_candidates, judged_candidates
from trt_layermerge.kinds.kind import (
    FAMILIES,
    LEAST_SQUARES,
    Family,
    KeepingKind,
    Kind,
    fittable,
)
from trt_layermerge.kinds.limits import Limits, fit_refusal
from trt_layermerge.kinds.registry import (
    families,
    kind_of,
    kinds_named,
    kinds_of,
    refusal,
    register,
    usual_kinds,
)

__all__ = [
    "FAMILIES",
    "LEAST_SQUARES",
    "Family",
    "KeepingKind",
    "Kind",
    "Limits",
    "enumerate_candidates",
    "families",
    "fit_refusal",
    "fittable",
    "judged_candidates",
    "kind_of",
    "kinds_named",
    "kinds_of",
    "refusal",
    "register",
    "usual_kinds",
]
