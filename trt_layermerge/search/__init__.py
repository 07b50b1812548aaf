"""From a layer graph and two tables to the plan that keeps the most within a latency budget."""

from __future__ import annotations

from trt_layermerge.search.candidates import Limits, enumerate_candidates
from trt_layermerge.search.chain import Frontier, Option, Solution, chain_frontier, solve_chain
from trt_layermerge.search.nearby import nearby_plans
from trt_layermerge.search.solve import Mode, Objective, allowed, frontier, plan_of, solve

__all__ = [
    "Frontier",
    "Limits",
    "Mode",
    "Objective",
    "Option",
    "Solution",
    "allowed",
    "chain_frontier",
    "enumerate_candidates",
    "frontier",
    "nearby_plans",
    "plan_of",
    "solve",
    "solve_chain",
]
