"""What an engine is: an objective that the loop lowers, and the held-out likelihood that tells it when to stop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.compose import Model
from instamap.data.particles import Particles
from instamap.options import Options, option


@dataclass(frozen=True)
class EngineOptions(Options):
    """What every engine offers."""

    steps: int = option(300, "steps at most", low=1)
    look: int = option(10, "steps between looks at the held-out likelihood", low=1)
    patience: int = option(5, "looks without improvement after which the fit stops", low=1)
    average: float = option(0.95, "decay per step of the running average of the parameters, which is what is kept", low=0.0, high=0.9999)


class Objective(ABC):
    """The negative log-likelihood of some rows of the particles, as one engine computes it."""

    Options = EngineOptions

    def __init__(self, options: EngineOptions, model: Model, particles: Particles, rows: Tensor, held_out: Tensor):
        """rows, held_out: disjoint row numbers of the particles to fit and to be judged by."""
        self.options, self.particles, self.rows, self.held_out_rows = options, particles, rows, held_out

    @abstractmethod
    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        """Loss (scalar, differentiable) of the next step."""

    @abstractmethod
    def held_out(self, model: Model) -> float:
        """log p of the held-out images beyond that of an empty map, in nats per image."""
