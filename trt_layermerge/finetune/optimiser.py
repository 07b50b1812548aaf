"""Optimisers of a recipe, and their buffers as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trt_layermerge.finetune.recipe import FinetuneRecipe


def make_optimiser(student: nn.Module, recipe: FinetuneRecipe) -> Optimizer:
    """Returns the optimiser, its parameters in two groups: with decay and without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in student.parameters():
        if parameter.requires_grad:
            flat = parameter.ndim <= 1 and not recipe.decay_bn_bias
            (plain if flat else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if recipe.optimiser == "sgd":
        nesterov = recipe.nesterov
        return SGD(groups, recipe.lr, recipe.momentum, nesterov=nesterov)
    return AdamW(groups, recipe.lr, betas=(recipe.momentum, 0.999))


def optimiser_tensors(optimiser: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers of every parameter, by its qualified name."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(
    optimiser: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Puts buffers back where ``optimiser_tensors`` found them.

    Args:
        optimiser: Of the model's parameters; changed in place.
        model: Names the parameters.
        tensors: Buffers by ``PARAMETER/BUFFER``; copied.

    Raises:
        KeyError: If a parameter is not in the model.
    """
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        if key == "step":  # AdamW counts on the CPU, wherever the parameter is
            optimiser.state[parameter][key] = value.cpu()
        else:  # in the device and layout of the parameter
            like = torch.empty_like(parameter, dtype=value.dtype)
            optimiser.state[parameter][key] = like.copy_(value)
