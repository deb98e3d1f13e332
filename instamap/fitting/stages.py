"""The stages of a fit: the usual ones, and what is refused."""

from instamap.errors import CompositionError
from instamap.fitting.stage import Stage
from instamap.model import Model
from instamap.parts import SharedDensity


def usual(model: Model) -> tuple[Stage, ...]:
    """The stages of a model where none are chosen: one, or two where particles differ, the first of
    which fits the density that is common to all.
    """
    if isinstance(model.deformation, SharedDensity):
        return (Stage(),)
    return (Stage(deformation=0.0), Stage())


def check(model: Model, stages: tuple[Stage, ...]) -> None:
    """Raises CompositionError for a stage in which nothing learns."""
    parts = {group["part"] for group in model.parameter_groups()}
    for number, stage in enumerate(stages, 1):
        if any(stage.factor(part) for part in parts):
            continue
        names = ", ".join(sorted(parts))
        raise CompositionError(
            f"stage {number} freezes all that learns ({names}); give one a factor above 0"
        )
