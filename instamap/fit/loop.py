"""The fit: Adam on an objective, a running average, stopped where held-out images are most likely."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.compose import Model
from instamap.fit.objective import Objective


@dataclass(frozen=True)
class Look:
    """The state of a fit at one step: `held_out` is in nats per image beyond an empty map, `best` whether it is the best so far."""

    step: int
    loss: float
    held_out: float
    best: bool
    seconds: float


@dataclass(frozen=True)
class Fit:
    """The average map "D D D" at the best look, and all looks."""

    map: Tensor
    looks: list[Look]

    @property
    def best(self) -> Look:
        return max(self.looks, key=lambda look: look.held_out)


def fit(model: Model, objective: Objective, *, generator: torch.Generator, watch: Callable[[Look], None] = lambda look: None) -> Fit:
    """Lower the objective step by step until looks at the held-out images stop improving; the map is that of the best look.

    If no look beat the empty map (held_out > 0), the best one is returned all the same: the caller sees it in the looks.
    """
    options, optimiser = objective.options, torch.optim.Adam(model.parameter_groups())
    looks, kept, start = [], None, time.monotonic()
    model.train()
    for step in range(1, options.steps + 1):
        loss = objective(model, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        objective.follow(model, min(options.average, 1 - 1 / step))
        if step % options.look and step != options.steps:
            continue
        held_out = objective.held_out()
        best = not looks or held_out > max(look.held_out for look in looks)
        kept = objective.map().clone() if best else kept
        looks.append(Look(step, float(loss.detach()), held_out, best, time.monotonic() - start))
        watch(looks[-1])
        if not any(look.best for look in looks[-options.patience :]):
            break
    model.eval()
    return Fit(kept, looks)
