"""What a fit lowers: an objective, the data that it may see, and the held-out likelihood that tells
the fit when to stop.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from instamap.fitting.regulariser import Regulariser
from instamap.model import Model
from instamap.plugin.options import Options, option
from instamap.scene import Batch
from instamap.statistics.statistics import Statistics


class FitData(ABC):
    """What one fit may see: data that it fits, and others, held out, that tell it when to stop."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of images that are fitted."""

    @property
    @abstractmethod
    def held_out_count(self) -> int:
        """The number of images that were held out."""

    @property
    @abstractmethod
    def held_out_weight(self) -> float:
        """The sum of the held-out images' weights, but at most the number of distinct ones where
        some are listed several times: copies tell nothing new.
        """


class ImageSource(Protocol):
    """Images of particles, read when asked for: see `data.particles.Particles`."""

    def batch(self, rows: Tensor) -> Batch:
        """The images and views of `rows` "B"."""

    def image_numbers(self) -> Tensor:
        """A number "n" for each row that rows share which are copies of an image."""


@dataclass(frozen=True)
class ImageData(FitData):
    """The images of one fit: `rows` and `held_out` are disjoint row numbers of `particles`."""

    particles: ImageSource
    rows: Tensor
    held_out: Tensor

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def held_out_count(self) -> int:
        return len(self.held_out)

    @property
    def held_out_weight(self) -> float:
        return float(distinct_images(self.particles, self.held_out))


@dataclass(frozen=True)
class StatisticsData(FitData):
    """The statistics of one fit's images and of the held-out ones.

    distinct_held_out: the number of held-out images of which none is a copy of another; None where
    it is not known that there are copies.
    """

    fitted: Statistics
    held_out: Statistics
    distinct_held_out: int | None = None

    @property
    def count(self) -> int:
        return self.fitted.count

    @property
    def held_out_count(self) -> int:
        return self.held_out.count

    @property
    def held_out_weight(self) -> float:
        weight = self.held_out.weight
        distinct = self.distinct_held_out
        if distinct is None or distinct >= self.held_out_count:
            return weight
        return min(weight, float(distinct))


def distinct_images(particles: ImageSource, rows: Tensor) -> int:
    """The number of images in `rows` "m" of which none is a copy of another."""
    image = particles.image_numbers()[rows]
    return len(image.unique())


@dataclass(frozen=True)
class ObjectiveOptions(Options):
    """The options that every objective offers."""

    steps: int = option(300, "steps at most", low=1)
    evaluate_every: int = option(5, "steps between evaluations of the held-out likelihood", low=1)
    patience: int = option(3, "evaluations without improvement after which the fit stops", low=1)
    tolerance: float = option(
        0.003, "share of the gain that counts as improvement within the patience", low=0.0, high=1.0
    )
    average: float = option(
        0.95, "decay per step of the running average that is kept", low=0.0, high=0.9999
    )


class Objective(ABC):
    """The negative log-likelihood of one fit's data, as a function of the model, and the running
    average of the fit.

    needs: the data that it is made with: "images" (ImageData), "statistics" (StatisticsData) or
    "conformations" (ConformationData). samples: whether a step sees a part of the data only, and
    its gradient is noisy. jitter: factor of all random displacements, which the stage of a fit
    sets. An objective lives on the device of the model that it was made with, until `to` moves it.
    """

    Options: Any = ObjectiveOptions
    needs: ClassVar[Literal["images", "statistics", "conformations"]]
    samples: ClassVar[bool] = False

    @classmethod
    def reason_against(cls, parts: dict[str, type]) -> str | None:
        """Why the objective cannot describe a composition of these classes, by kind, in words for
        people; None if it can.
        """
        return None

    def __init__(self, options: Any, model: Model, data: Any) -> None:
        self.options = options
        self.data = data
        self.device = next(model.parameters()).device
        self.regulariser = Regulariser(model)
        self.jitter = 1.0

    @abstractmethod
    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        """The loss (scalar, differentiable, nats per image) of the next step."""

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
        """Changes something, and says whether there was something to change.

        It is asked for where the held-out likelihood has turned, and model and average are back at
        the best evaluation; without a change the fit stops there.
        """
        return False

    @abstractmethod
    def map(self) -> Tensor:
        """The average as a map "D D D" [z, y, x]."""

    def fitted_model(self, model: Model) -> Model:
        """The model whose parameters go with the average, for one that was fitted."""
        return model

    @abstractmethod
    def average_state(self) -> Any:
        """A copy of the average, in plain tensors: what a fit that turns goes back to."""

    @abstractmethod
    def load_average(self, state: Any) -> None:
        """Goes back to an earlier average."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that changes in the course of a fit, in plain tensors and numbers."""
        return {"average": self.average_state(), "jitter": self.jitter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where another objective of the same making was."""
        self.load_average(state["average"])
        self.jitter = state["jitter"]

    def to(self, device: torch.device | str) -> Self:
        """Moves all that it keeps to a device, and returns itself."""
        self.device = torch.device(device)
        self.regulariser.to(device)
        return self


class ModelAverage(Objective):
    """An objective whose running average is one of the parameters: a model."""

    def __init__(self, options: Any, model: Model, data: Any) -> None:
        super().__init__(options, model, data)
        self.average = copy.deepcopy(model).eval()

    @torch.no_grad()
    def follow(self, model: Model, decay: float) -> None:
        pairs = zip(self.average.parameters(), model.parameters(), strict=True)
        for average, now in pairs:
            average.lerp_(now, 1 - decay)

    def map(self) -> Tensor:
        return self.average.raster()

    def fitted_model(self, model: Model) -> Model:
        return self.average

    def average_state(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.average.state_dict())

    def load_average(self, state: dict[str, Tensor]) -> None:
        self.average.load_state_dict(state)

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self.average.to(device)
        return self
