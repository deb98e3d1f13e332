"""What fits to mini-batches have learned of each particle: coordinates of a bending, or corrections
of rigid bodies.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from instamap.fitting.loop import FitResult
from instamap.fitting.objective import ImageData
from instamap.model import Model
from instamap.parts import ContinuousDeformation, RigidCorrection
from instamap.workflows import learned_poses, motion_files
from instamap.workflows.kept_files import KeptFiles
from instamap.workflows.learned_motion import learned_motion
from instamap.workflows.prepare import Prepared
from instamap.workflows.result import Artefact
from instamap.workflows.settings import Settings

FILES = (*motion_files.PATTERNS, *learned_poses.PATTERNS)
"""Patterns of the names of all files that it may have."""


def reload(folder: Path) -> Sequence[Artefact]:
    """What an earlier run has learned, from its folder; nothing where it has not."""
    if (folder / motion_files.RECORD).exists():
        return [motion_files.MotionFiles.open(folder)]
    kept = KeptFiles.matching(folder, learned_poses.PATTERNS)
    return [kept] if kept.names else []


def learned(
    settings: Settings,
    prepared: Prepared,
    fits: Mapping[str, FitResult],
    models: dict[str, Model],
) -> Sequence[Artefact]:
    """What was learned, as artefacts; nothing unless images were fitted and all fits found a
    signal.

    models: of each set, as the best evaluation left it.
    """
    fits_of_images = prepared.fits.items()
    data = {name: one for name, one in fits_of_images if isinstance(one, ImageData)}
    if len(data) < len(prepared.fits) or not all(fit.signal for fit in fits.values()):
        return []
    assert prepared.particles is not None  # there are images
    deformation = next(iter(models.values())).deformation
    if isinstance(deformation, ContinuousDeformation):
        return [learned_motion(settings, prepared.particles, data, models)]
    if isinstance(deformation, RigidCorrection):
        return [learned_poses.learned_poses(prepared.particles, data, models)]
    return []
