"""The fit: Adam on an objective, an average of the parameters, stopped where held-out images are most likely."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

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


def fit(model: Model, objective: Objective, *, generator: torch.Generator, watch: Callable[[Look], None] = lambda look: None) -> list[Look]:
    """Fit `model` in place and leave it, in eval mode, as the averaged parameters that made the held-out images most likely.

    If no look beat the empty map (held_out > 0), the model of the best look is kept all the same: the caller sees it in the looks.
    """
    options, optimiser = objective.options, torch.optim.Adam(model.parameter_groups())
    average, kept, looks, start = copy.deepcopy(model).eval(), None, [], time.monotonic()
    model.train()
    for step in range(1, options.steps + 1):
        loss = objective(model, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        _follow(average, model, min(options.average, 1 - 1 / step))
        if step % options.look and step != options.steps:
            continue
        held_out = objective.held_out(average)
        best = not looks or held_out > max(look.held_out for look in looks)
        if best:
            kept = copy.deepcopy(average.state_dict())
        looks.append(Look(step, float(loss.detach()), held_out, best, time.monotonic() - start))
        watch(looks[-1])
        if not any(look.best for look in looks[-options.patience :]):
            break
    model.load_state_dict(kept)
    model.eval()
    return looks


@torch.no_grad()
def _follow(average: Model, model: Model, decay: float) -> None:
    """average <- decay · average + (1 - decay) · model."""
    for slow, now in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(now, 1 - decay)
