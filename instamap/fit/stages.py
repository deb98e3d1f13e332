"""Stages of a fit, as data: what learns in each of them, how fast, and how far points are moved at
random.
"""

from dataclasses import dataclass

from instamap.errors import CompositionError
from instamap.model import Model
from instamap.plugin.options import Options, option

LEARNS = ("representation", "deformation", "forward", "likelihood")


@dataclass(frozen=True)
class Stage(Options):
    """One stage. It ends where looks stop improving or after `steps`; the next one goes on from the
    best look.
    """

    steps: int | None = option(None, "steps at most; none means those of the engine", low=1)
    representation: float = option(
        1.0, "factor of this part's learning rate; 0 freezes it", low=0.0
    )
    deformation: float = option(1.0, "factor of this part's learning rate; 0 freezes it", low=0.0)
    forward: float = option(1.0, "factor of this part's learning rate; 0 freezes it", low=0.0)
    likelihood: float = option(1.0, "factor of this part's learning rate; 0 freezes it", low=0.0)
    warm_up: int = option(0, "first steps, over which learning rates rise linearly", low=0)
    decay: float = option(
        1.0,
        "factor by which learning rates fall, geometrically, until the last step",
        low=1e-6,
        high=1.0,
    )
    jitter: float = option(
        1.0, "factor of the jitter of the engine and of the forward operator", low=0.0
    )
    jitter_end: float | None = option(
        None, "factor that it reaches linearly at the last step; none means that it stays", low=0.0
    )

    def rate(self, part: str, step: int, steps: int) -> float:
        """Factor of a part's learning rate at step 1..steps."""
        rise = min(1.0, step / (self.warm_up + 1))
        return getattr(self, part) * rise * self.decay ** (step / steps)

    def jitter_at(self, step: int, steps: int) -> float:
        """Factor of the jitter at step 1..steps."""
        end = self.jitter if self.jitter_end is None else self.jitter_end
        return self.jitter + (end - self.jitter) * step / steps


def usual(model: Model) -> tuple[Stage, ...]:
    """What is done where nothing is said: one stage, or for a deformation that differs between
    particles, first without it.
    """
    return (Stage(deformation=0.0), Stage()) if model.deformation.per_particle else (Stage(),)


def check(model: Model, stages: tuple[Stage, ...]) -> None:
    """Raises CompositionError for a stage in which nothing learns."""
    parts = {group["part"] for group in model.parameter_groups()}
    for number, stage in enumerate(stages, 1):
        if not any(getattr(stage, part) for part in parts):
            raise CompositionError(
                f"stage {number} freezes all that learns ({', '.join(sorted(parts))}); give one a"
                " factor above 0"
            )
