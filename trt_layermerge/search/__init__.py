"""From a layer graph and two tables to the plan that keeps the most within a latency budget."""

from __future__ import annotations

from trt_layermerge.search.chain import Frontier, Option, Solution, chain_frontier, solve_chain
from trt_layermerge.search.nearby import nearby_plans
from trt_layermerge.search.solve import Mode, Objective, allowed, frontier, plan_of, solve

__all__ = [
    "Frontier",
    "Mode",
    "Objective",
    "Option",
    "Solution",
    "allowed",
    "chain_frontier",
    "frontier",
    "nearby_plans",
    "plan_of",
    "solve",
    "solve_chain",
]
