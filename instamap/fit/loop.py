"""The fit: Adam on an objective, a running average, stopped where held-out images are most likely."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fit.objective import EngineOptions, Objective
from instamap.fit.stages import Stage, usual
from instamap.model import Model

CHANCE = 0.01  # probability, at most, that a map of pure noise is taken for a signal


@dataclass(frozen=True)
class Look:
    """The state of a fit at one step: `held_out` is in nats per image beyond an empty map, `best`
    whether it is the best so far.

    stage: counted from 1.
    """

    step: int
    loss: float
    held_out: float
    best: bool
    seconds: float
    stage: int = 1


@dataclass(frozen=True)
class Fit:
    """The average map "D D D" at the best look, all looks, and whether a signal was found; if not
    the map is empty.
    """

    map: Tensor
    looks: list[Look]
    signal: bool

    @property
    def best(self) -> Look:
        return max(self.looks, key=lambda look: look.held_out)


def stalled(looks: list[Look], options: EngineOptions) -> bool:
    """Whether the last `patience` looks have gained at most the share `tolerance` of what the best
    one before had over an empty map.
    """
    if len(looks) <= options.patience:
        return False
    before = max(look.held_out for look in looks[: -options.patience])
    return max(look.held_out for look in looks) - before <= options.tolerance * abs(before)


def fit(
    model: Model,
    objective: Objective,
    stages: tuple[Stage, ...] | None = None,
    *,
    generator: torch.Generator,
    watch: Callable[[Look], None] = lambda look: None,
) -> Fit:
    """Lower the objective step by step until looks at the held-out images stop improving; the map
    and model are those of the best look.

    stages: None means the usual ones. The fit starts from the empty map and goes back to it unless
    all held-out images together are likelier, at the best look, by more than chance allows: under
    pure noise exp(gain) has mean 1, so the best of n looks gains x nats with probability n e^-x at
    most.
    """
    run = _Run(model, objective, generator, watch)
    for number, stage in enumerate(stages or usual(model), 1):
        run.carry_out(stage, number)
    model.eval()
    gain = max(look.held_out for look in run.looks) * objective.evidence.held_out_weight
    signal = gain > math.log(len(run.looks) / CHANCE)
    map = objective.map()
    return Fit(map if signal else torch.zeros_like(map), run.looks, signal)


class _Run:
    """A fit that is under way: its looks, and the best one's model, optimiser and average."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        generator: torch.Generator,
        watch: Callable[[Look], None],
    ):
        self.model = model
        self.objective = objective
        self.generator = generator
        self.watch = watch
        self.optimiser = torch.optim.Adam(model.parameter_groups(), fused=True)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.looks = []
        self.step = 0
        self.start = time.monotonic()
        self.kept = None

    def carry_out(self, stage: Stage, number: int) -> None:
        """Its steps, as long as looks improve; then back to the best look of all."""
        options = self.objective.options
        since = 0  # since: looks after the stage began or went on from the best one
        steps = stage.steps or options.steps
        self.model.train()
        for step in range(1, steps + 1):
            loss = self._step(stage, step, steps)
            if step % options.look and step != steps:
                continue
            self._look(number, loss)
            since += 1
            if since < options.patience or not stalled(self.looks, options):
                continue
            turned = not self.looks[
                -1
            ].best  # if not, nothing has been overfitted: more steps would only cost time
            self._go_back()
            if not turned or not self.objective.retry():
                return
            since = 0
        self._go_back()

    def _step(self, stage: Stage, step: int, steps: int) -> float:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * stage.rate(group["part"], step, steps)
            for parameter in group["params"]:
                parameter.requires_grad_(getattr(stage, group["part"]) > 0)
        self.objective.jitter = stage.jitter_at(step, steps)
        loss = self.objective(self.model, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        self.objective.follow(self.model, min(self.objective.options.average, 1 - 1 / self.step))
        return float(loss.detach())

    def _look(self, stage: int, loss: float) -> None:
        held_out = self.objective.held_out()
        best = not self.looks or held_out > max(look.held_out for look in self.looks)
        if best:
            self.kept = copy.deepcopy(
                (self.model.state_dict(), self.optimiser.state_dict(), self.objective.state())
            )
        self.looks.append(
            Look(self.step, loss, held_out, best, time.monotonic() - self.start, stage)
        )
        self.watch(self.looks[-1])

    def _go_back(self) -> None:
        model, optimiser, average = copy.deepcopy(self.kept)
        self.model.load_state_dict(model)
        self.optimiser.load_state_dict(optimiser)
        self.objective.restore(average)
