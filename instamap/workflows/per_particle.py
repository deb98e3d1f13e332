"""What a fit to mini-batches has learned of each particle, written beside its maps."""

from pathlib import Path

from instamap.model import Model
from instamap.workflows import learned_motion as motion
from instamap.workflows import learned_poses as poses
from instamap.workflows.map import Data
from instamap.workflows.settings import Settings


def write(settings: Settings, data: Data, models: dict[str, Model], folder: Path) -> None:
    """Coordinates of a bending, or corrections of rigid bodies, into an existing folder; nothing of
    other deformations.

    models: of each of data.evidence, as its best look left it. Call it only where all fits found a
    signal.
    """
    if next(iter(models.values())).deformation.states == "bend":
        motion.write(settings, data, models, folder)
    elif settings.parts["deformation"].name == "rigid":
        poses.write(data, models, folder)
