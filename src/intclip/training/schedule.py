"""Learning-rate schedules as functions of the step, without state."""

import math
from typing import Literal

ScheduleName = Literal["cosine", "constant", "onecycle"]
ScheduleUnit = Literal["epoch", "step"]


def learning_rate(
    name: ScheduleName,
    unit: ScheduleUnit,
    *,
    rate: float,
    warmup_rate: float,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float,
) -> float:
    """Return the learning rate of a parameter group at a step.

    Args:
        name: "cosine" falls to 0, "constant" stays, "onecycle" rises from rate/25 and falls to rate/250000 (both by a
            cosine; `warmup_rate` is not used), as `torch.optim.lr_scheduler.OneCycleLR`.
        unit: "epoch" changes the rate between epochs only and holds `warmup_rate` during warm-up, as Dassl does for
            CoOp, DualCoOp and the released IntCLIP; there the cosine has the period `epochs` and starts after the
            warm-up, so the last epoch does not quite reach 0. "step" changes it at every step, and rises linearly
            from `warmup_rate` to `rate`.
        rate: The group's full learning rate.
        warmup_rate: Rate at the start of the warm-up.
        step: Optimiser steps done so far, counted over all epochs from 0.
        steps_per_epoch: Optimiser steps of an epoch.
        epochs: Epochs of the whole run.
        warmup_epochs: Length of the warm-up.
    """
    if name == "onecycle":
        return _onecycle(rate, step, epochs * steps_per_epoch, warmup_epochs / epochs)
    if unit == "epoch":
        epoch = step // steps_per_epoch
        if epoch < warmup_epochs:
            return warmup_rate
        progress = (epoch - math.ceil(warmup_epochs)) / epochs
    else:
        warmup = warmup_epochs * steps_per_epoch
        if step < warmup:
            return warmup_rate + (rate - warmup_rate) * step / warmup
        progress = (step - warmup) / max(1.0, epochs * steps_per_epoch - warmup)
    return rate if name == "constant" else rate * _fall(progress)


def _fall(progress: float) -> float:
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _onecycle(rate: float, step: int, total: int, rising_share: float) -> float:
    start, end = rate / 25, rate / 25 / 1e4
    peak = rising_share * total - 1
    if step <= peak:
        return rate + (start - rate) * _fall(step / peak) if peak > 0 else rate
    return end + (rate - end) * _fall((step - peak) / max(1.0, total - 1 - peak))


def onecycle_momentum(step: int, total: int, rising_share: float) -> float:
    """Return the first moment's decay in a one-cycle schedule, as in `torch.optim.lr_scheduler.OneCycleLR`.

    It falls from 0.95 to 0.85 while the rate rises, and rises back while the rate falls (Smith and Topin, 2017).

    Args:
        step: Optimiser steps done so far.
        total: Optimiser steps of the whole schedule.
        rising_share: Share of the steps in which the rate rises.
    """
    low, high = 0.85, 0.95
    peak = rising_share * total - 1
    if step <= peak:
        return low + (high - low) * _fall(step / peak) if peak > 0 else low
    return high + (low - high) * _fall((step - peak) / max(1.0, total - 1 - peak))
