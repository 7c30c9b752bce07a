"""Optimisers: creation from a method's parameter groups, and serialisation without pickle."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from intclip.errors import CheckpointError, RecipeError
from intclip.methods.base import ParameterGroup
from intclip.training.recipe import OptimSection, ScheduleSection
from intclip.training.recipe_file import nearest
from intclip.training.schedule import learning_rate, onecycle_momentum

Json = dict[str, Any]


def build_optimizer(optim: OptimSection, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """Create the recipe's optimiser for a method's groups.

    Raises:
        RecipeError: `optim.multipliers` names an unknown group.
    """
    names = [group.name for group in groups]
    for name in optim.multipliers:
        if name not in names:
            close = nearest(name, names)
            hint = f"did you mean {close!r}?" if close else f"its groups: {', '.join(names)}"
            raise RecipeError(f"optim.multipliers: the method has no parameter group {name!r}; {hint}")
    settings: list[dict[str, Any]] = []
    for group in groups:
        decay = optim.weight_decay * group.weight_decay_multiplier
        vectors = [parameter for parameter in group.parameters if parameter.ndim <= 1 and not optim.decay_vectors]
        matrices = [parameter for parameter in group.parameters if not any(parameter is vector for vector in vectors)]
        multiplier = optim.multipliers.get(group.name, group.lr_multiplier)
        for parameters, weight_decay in ((matrices, decay), (vectors, 0.0)):
            if parameters:
                settings.append(
                    {
                        "params": parameters,
                        "name": group.name,
                        "multiplier": multiplier,
                        "weight_decay": weight_decay,
                    }
                )
    if optim.name == "sgd":
        return torch.optim.SGD(settings, lr=optim.lr, momentum=optim.momentum)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(settings, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def set_rates(
    optimizer: torch.optim.Optimizer, optim: OptimSection, schedule: ScheduleSection, step: int, steps_per_epoch: int
) -> None:
    """Set every group's learning rate, and in a one-cycle schedule its momentum, for the next step."""
    for group in optimizer.param_groups:
        if schedule.name == "onecycle":
            total, rising_share = schedule.epochs * steps_per_epoch, schedule.warmup_epochs / schedule.epochs
            momentum = onecycle_momentum(step, total, rising_share)
            group.update({"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum})
        group["lr"] = learning_rate(
            schedule.name,
            schedule.unit,
            rate=optim.lr * group["multiplier"],
            warmup_rate=schedule.warmup_lr,
            step=step,
            steps_per_epoch=steps_per_epoch,
            epochs=schedule.epochs,
            warmup_epochs=schedule.warmup_epochs,
        )


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Json]:
    """Return an optimiser's state as tensors named `<parameter>.<entry>` and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        numbers[str(index)] = {}
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{entry}"] = value
            else:
                numbers[str(index)][entry] = value
    return tensors, {"state": numbers, "param_groups": state["param_groups"]}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Json) -> None:
    """Restore an optimiser's state from `flatten_optimizer`.

    Raises:
        CheckpointError: The state belongs to another model.
    """
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in meta["state"].items()}
    try:
        for key, value in tensors.items():
            index, _, entry = key.partition(".")
            state[int(index)][entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": meta["param_groups"]})
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint belongs to another model ({error}); start again without --resume"
        ) from error
