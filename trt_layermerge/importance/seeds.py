"""Seeds that depend on a candidate alone, so scores do not depend on the order of scoring."""

from __future__ import annotations

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import sha256_json


def candidate_seed(candidate: Candidate, seed: int) -> int:
    """Returns a seed from 0 to 2³¹ − 1."""
    return int(sha256_json([candidate.to_json(), seed])[:8], 16) >> 1
