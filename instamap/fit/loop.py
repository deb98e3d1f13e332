"""The fit: Adam on an objective, a running average, stopped where held-out images are most likely."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.compose import Model
from instamap.fit.objective import EngineOptions, Objective

CHANCE = 0.01  # probability, at most, that a map of pure noise is taken for a signal


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
    """The average map "D D D" at the best look, all looks, and whether a signal was found; if not the map is empty."""

    map: Tensor
    looks: list[Look]
    signal: bool

    @property
    def best(self) -> Look:
        return max(self.looks, key=lambda look: look.held_out)


def stalled(looks: list[Look], options: EngineOptions) -> bool:
    """Whether the last `patience` looks have gained at most the share `tolerance` of what the best one before had over an empty map."""
    if len(looks) <= options.patience:
        return False
    before = max(look.held_out for look in looks[: -options.patience])
    return max(look.held_out for look in looks) - before <= options.tolerance * abs(before)


def fit(model: Model, objective: Objective, *, generator: torch.Generator, watch: Callable[[Look], None] = lambda look: None) -> Fit:
    """Lower the objective step by step until looks at the held-out images stop improving; the map and model are those of the best look.

    The fit starts from the empty map and goes back to it unless all held-out images together are likelier, at the best look, by more
    than chance allows: under pure noise exp(gain) has mean 1, so the best of n looks gains x nats with probability n e^-x at most.
    """
    options, optimiser = objective.options, torch.optim.Adam(model.parameter_groups())
    looks, since, start = [], 0, time.monotonic()  # since: looks after the beginning or the last retry
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
        if best:
            kept, state = objective.map().clone(), copy.deepcopy((model.state_dict(), optimiser.state_dict()))
        looks.append(Look(step, float(loss.detach()), held_out, best, time.monotonic() - start))
        watch(looks[-1])
        since += 1
        if since < options.patience or not stalled(looks, options):
            continue
        if best:  # nothing has been overfitted: more steps would only cost time
            break
        model.load_state_dict(state[0])
        optimiser.load_state_dict(state[1])
        if not objective.retry(kept):
            break
        since = 0
    model.load_state_dict(state[0])
    model.eval()
    gain = max(look.held_out for look in looks) * objective.evidence.held_out_weight
    signal = gain > math.log(len(looks) / CHANCE)
    return Fit(kept if signal else torch.zeros_like(kept), looks, signal)
