"""What an engine is: an objective that the loop lowers, and the held-out likelihood that tells it
when to stop.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fit.regulariser import Prior
from instamap.model import Model
from instamap.plugin.options import Options, option
from instamap.statistics.statistics import Statistics


@dataclass(frozen=True)
class Evidence:
    """What one fit may see. Either the images (rows and held_out are disjoint row numbers of
    particles), or their statistics, or both.
    """

    particles: Particles | None = None
    rows: Tensor | None = None
    held_out: Tensor | None = None
    statistics: Statistics | None = None
    held_out_statistics: Statistics | None = None

    @property
    def count(self) -> int:
        """Images that are fitted."""
        return len(self.rows) if self.rows is not None else self.statistics.count

    @property
    def held_out_weight(self) -> float:
        """Sum of the held-out images' weights; of images that are listed several times at most
        their number, as copies tell nothing new.
        """
        weight = (
            self.held_out_statistics.weight
            if self.held_out_statistics is not None
            else float(len(self.held_out))
        )
        distinct = (
            self.held_out_count
            if self.particles is None
            else len(self.particles.units()[self.held_out].unique())
        )
        return min(weight, float(distinct)) if distinct < self.held_out_count else weight

    @property
    def held_out_count(self) -> int:
        """Images that were held out."""
        return len(self.held_out) if self.held_out is not None else self.held_out_statistics.count


@dataclass(frozen=True)
class EngineOptions(Options):
    """What every engine offers."""

    steps: int = option(300, "steps at most", low=1)
    look: int = option(5, "steps between looks at the held-out likelihood", low=1)
    patience: int = option(3, "looks without improvement after which the fit stops", low=1)
    tolerance: float = option(
        0.003, "share of the gain that counts as improvement within the patience", low=0.0, high=1.0
    )
    average: float = option(
        0.95, "decay per step of the running average that is kept", low=0.0, high=0.9999
    )


class Objective(ABC):
    """The negative log-likelihood of one fit's evidence, as one engine computes it, and the running
    average of the fit.
    """

    Options = EngineOptions

    def __init__(self, options: EngineOptions, model: Model, evidence: Evidence):
        self.options = options
        self.evidence = evidence
        self.prior = Prior(model)
        self.jitter = 1.0  # factor of all random displacements, which the stage of the fit sets

    @abstractmethod
    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        """Loss (scalar, differentiable, nats per image) of the next step."""

    @abstractmethod
    def follow(self, model: Model, decay: float) -> None:
        """Moves the running average towards the model after a step: average <- decay · average + (1
        - decay) · now.
        """

    @abstractmethod
    def held_out(self) -> float:
        """log p of the held-out images given the average, beyond that of an empty map, in nats per
        image.
        """

    def retry(self) -> bool:
        """The likelihood has turned, model and average are back at the best look: change something
        and go on, or stop (False).
        """
        return False

    @abstractmethod
    def state(self) -> Tensor | dict:
        """The average, for `restore`."""

    @abstractmethod
    def restore(self, state: Tensor | dict) -> None:
        """Goes back to an earlier average."""

    @abstractmethod
    def map(self) -> Tensor:
        """The average as a map "D D D" [z, y, x]."""


class Averaged(Objective):
    """An objective whose running average is one of the parameters: a model."""

    def __init__(self, options: EngineOptions, model: Model, evidence: Evidence):
        super().__init__(options, model, evidence)
        self.average = copy.deepcopy(model).eval()

    @torch.no_grad()
    def follow(self, model: Model, decay: float) -> None:
        for slow, now in zip(self.average.parameters(), model.parameters(), strict=True):
            slow.lerp_(now, 1 - decay)

    def state(self) -> dict:
        return copy.deepcopy(self.average.state_dict())

    def restore(self, state: dict) -> None:
        self.average.load_state_dict(state)

    def map(self) -> Tensor:
        return self.average.raster()
