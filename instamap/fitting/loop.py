"""The loop of a fit: Adam on an objective, stopped where held-out images are most likely."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.fitting import denormals
from instamap.fitting.adam import Adam
from instamap.fitting.checkpoint import Checkpoint, Checkpoints, Fitted, KeptFit, Position
from instamap.fitting.objective import Objective, ObjectiveOptions
from instamap.fitting.stage import Stage
from instamap.fitting.stages import usual
from instamap.model import Model
from instamap.progress import SILENT, Evaluation, Progress

FALSE_POSITIVE_RATE = 0.01  # probability, at most, that noise alone is taken for a signal
# In the average of the first n steps, step t counts in proportion to about t to this power: the
# first ones are far from where the fit is by then. Source: Shamir & Zhang, ICML 2013.
RECENCY = 0.5


@dataclass(frozen=True)
class FitResult:
    """The average map "D D D" at the best evaluation, all evaluations, and whether a signal was
    found; if not the map is empty.
    """

    map: Tensor
    evaluations: list[Evaluation]
    signal: bool

    @property
    def best(self) -> Evaluation:
        """The evaluation at which held-out images were most likely."""
        return most_likely(self.evaluations)


def most_likely(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The first of those evaluations at which held-out images were most likely."""
    return max(evaluations, key=lambda evaluation: evaluation.held_out)


def stalled(evaluations: Sequence[Evaluation], options: ObjectiveOptions) -> bool:
    """Whether the last `patience` evaluations have gained at most the share `tolerance` of what the
    best one before had over an empty map.
    """
    if len(evaluations) <= options.patience:
        return False
    before = most_likely(evaluations[: -options.patience]).held_out
    now = most_likely(evaluations).held_out
    return now - before <= options.tolerance * abs(before)


def optimise(
    model: Model,
    objective: Objective,
    stages: tuple[Stage, ...] | None = None,
    *,
    generator: torch.Generator,
    progress: Progress = SILENT,
    name: str = "map",
    resume: Checkpoint | None = None,
    checkpoints: Checkpoints | None = None,
) -> FitResult:
    """Lower the objective step by step until evaluations on held-out images stop improving; the map
    and model are those of the best evaluation.

    stages: None means the usual ones. name: what progress and checkpoints call the fit. resume:
    where to go on from; model and objective are then of the same making as the ones that were
    stopped, and the outcome is the same to the last bit. checkpoints: keeps one after each
    evaluation. Where progress keeps the state of steps, the fit goes on from there by itself.

    The fit starts from the empty map and goes back to it unless all held-out images together are
    likelier, at the best evaluation, by more than chance allows: under pure noise exp(gain) has
    mean 1, so the best of n evaluations gains x nats with probability n e^-x at most.
    """
    fit = _Fit(model, objective, stages or usual(model), generator)
    kept = KeptFit(progress.kept(f"fit {name}"))
    earlier = kept.load() if resume is None else resume
    if earlier is not None:
        fit.resume(earlier)
        for evaluation in earlier.evaluations:
            progress.evaluated(name, evaluation, fit.steps_at_most)
    model.train()
    with denormals.flushed():
        while not fit.finished:
            if not fit.advance():
                continue
            progress.evaluated(name, fit.evaluations[-1], fit.steps_at_most)
            fit.react()
            if checkpoints is not None:
                checkpoints.save(name, fit.checkpoint())
            if kept.due or fit.finished:
                kept.save(fit.checkpoint())
    model.eval()
    return fit.result()


class _Fit:
    """A fit that is under way: its place, its evaluations, and what it goes back to."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        stages: tuple[Stage, ...],
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.objective = objective
        self.stages = stages
        self.generator = generator
        self.optimiser = Adam(model.parameter_groups(objective.samples))
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.evaluations: list[Evaluation] = []
        self.position = Position()
        self.best: Fitted | None = None
        self._start = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether all stages have ended."""
        return self.position.stage > len(self.stages)

    @property
    def steps_at_most(self) -> int:
        """The number of steps of all stages, if none of them ends early."""
        return sum(self._steps(stage) for stage in self.stages)

    @property
    def stage(self) -> Stage:
        """The stage that is under way."""
        return self.stages[self.position.stage - 1]

    def _steps(self, stage: Stage) -> int:
        return stage.steps or self.objective.options.steps

    @property
    def _at_last_step(self) -> bool:
        return self.position.stage_step == self._steps(self.stage)

    def advance(self) -> bool:
        """Takes one step; says whether it was followed by an evaluation."""
        position = self.position
        self.position = replace(
            position, step=position.step + 1, stage_step=position.stage_step + 1
        )
        loss = self._step()
        due = self.position.stage_step % self.objective.options.evaluate_every == 0
        if not due and not self._at_last_step:
            return False
        self._evaluate(loss)
        return True

    def _step(self) -> float:
        stage = self.stage
        step = self.position.stage_step
        steps = self._steps(stage)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            part = group["part"]
            group["lr"] = rate * stage.rate(part, step, steps)
            for parameter in group["params"]:
                parameter.requires_grad_(stage.factor(part) > 0)
        self.objective.jitter = stage.jitter_at(step, steps)
        loss = self.objective(self.model, self.generator)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        start_up = (self.position.step - 1) / (self.position.step + RECENCY)
        decay = min(self.objective.options.average, start_up)
        self.objective.follow(self.model, decay)
        return float(loss.detach())

    def _evaluate(self, loss: float) -> None:
        held_out = self.objective.held_out()
        best = not self.evaluations or held_out > most_likely(self.evaluations).held_out
        if best:
            self.best = copy.deepcopy(self._present())
        seconds = time.monotonic() - self._start
        position = self.position
        self.evaluations.append(
            Evaluation(position.step, loss, held_out, best, seconds, position.stage)
        )
        self.position = replace(position, since=position.since + 1)

    def _present(self) -> Fitted:
        return Fitted(
            self.model.state_dict(), self.optimiser.state_dict(), self.objective.average_state()
        )

    def react(self) -> None:
        """Goes on, goes back to the best evaluation, or ends the stage there."""
        last = self._at_last_step
        options = self.objective.options
        if self.position.since >= options.patience and stalled(self.evaluations, options):
            # If the last one is the best, nothing is overfitted: more steps would only cost time.
            turned = not self.evaluations[-1].best
            self._go_back()
            if not turned or not self.objective.retry():
                self._end_stage()
                return
            self.position = replace(self.position, since=0)
        if last:
            self._go_back()
            self._end_stage()

    def _go_back(self) -> None:
        assert self.best is not None, "a fit goes back only after an evaluation"
        best = copy.deepcopy(self.best)
        self.model.load_state_dict(best.model)
        self.optimiser.load_state_dict(best.optimiser)
        self.objective.load_average(best.average)

    def _end_stage(self) -> None:
        position = self.position
        self.position = replace(position, stage=position.stage + 1, stage_step=0, since=0)

    def result(self) -> FitResult:
        """What was found, once all stages have ended."""
        best = most_likely(self.evaluations)
        gain = best.held_out * self.objective.data.held_out_weight
        signal = gain > math.log(len(self.evaluations) / FALSE_POSITIVE_RATE)
        volume = self.objective.map()
        if not signal:
            volume = torch.zeros_like(volume)
        return FitResult(volume, self.evaluations, signal)

    def checkpoint(self) -> Checkpoint:
        """A copy of the whole state, taken after an evaluation."""
        assert self.best is not None, "a checkpoint is taken only after an evaluation"
        seconds = time.monotonic() - self._start
        return Checkpoint(
            position=replace(self.position, seconds=seconds),
            evaluations=list(self.evaluations),
            model=copy.deepcopy(self.model.state_dict()),
            optimiser=copy.deepcopy(self.optimiser.state_dict()),
            objective=self.objective.state_dict(),
            generator=self.generator.get_state(),
            best=self.best,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from where another fit of the same making was."""
        self.position = checkpoint.position
        self.evaluations = list(checkpoint.evaluations)
        self.best = checkpoint.best
        self.model.load_state_dict(checkpoint.model)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        self.objective.load_state_dict(checkpoint.objective)
        self.generator.set_state(checkpoint.generator)
        self._start = time.monotonic() - checkpoint.position.seconds
