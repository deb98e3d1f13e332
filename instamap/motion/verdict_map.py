"""Where to believe what, voxel by voxel: the map, by local resolution, and the motion, by what an
audit found.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.maps import local_resolution
from instamap.motion import conformation_maps
from instamap.motion.audit import Audit, audited
from instamap.motion.motion_model import MotionModel
from instamap.progress import SILENT, Progress

AT_REST_SHARE = 0.1
"""Share of the local resolution below which a displacement does not show in a map."""

NAMES = ("reference", "local_resolution", "verdict")  # of the maps

UNRESOLVED = 1 - 1e-6  # of the coarsest resolution that a window can tell


class Belief(IntEnum):
    """What a voxel of a verdict map says; the higher, the more is to be believed there."""

    NOTHING = 0
    MAP_ALONE = 1
    MAP_AT_REST = 2
    MAP_AND_MOTION = 3


WORDS = {
    Belief.NOTHING: "neither: the half maps agree no better than noise",
    Belief.MAP_ALONE: "the map, but not the motion: the halves differ in it",
    Belief.MAP_AT_REST: "the map, which is at rest",
    Belief.MAP_AND_MOTION: "the map and its motion",
}


@dataclass(frozen=True)
class LocalVerdict:
    """What is known around each voxel of the conformation from which an audit sees motion.

    reference "D D D": its map. resolution "D D D": Å. beliefs "D D D": values of `Belief`. shares:
    of the mask's voxels, by belief.
    """

    reference: Tensor
    resolution: Tensor
    beliefs: Tensor
    shares: dict[Belief, float]

    def record(self) -> dict[str, float]:
        """The shares of the mask's voxels by the names of beliefs, as JSON can hold them."""
        return {belief.name.lower(): round(share, 4) for belief, share in self.shares.items()}

    def maps(self) -> dict[str, Tensor]:
        """The maps by the names of their files."""
        volumes = (self.reference, self.resolution, self.beliefs)
        return dict(zip(NAMES, volumes, strict=True))


def combine(motion: MotionModel, audit: Audit, progress: Progress = SILENT) -> LocalVerdict:
    """What is to be believed at each voxel, by half maps of the audit's reference and by the audit.

    Raises DataError where there is one fit, or where its half maps have nothing in common; and
    OptionError where the box is too small for local resolution.
    """
    place = torch.tensor(audit.reference, dtype=torch.float64)
    maps = conformation_maps.maps_at(motion, place)
    resolution = conformation_maps.resolution(motion, maps)
    if resolution is None:
        raise DataError("the motion has one fit, or empty maps: there are no half maps to compare")
    pixel_size = motion.scene.pixel_size
    bands = local_resolution.choose_bands(motion.scene.box, pixel_size, resolution)
    first, second = maps.halves
    local = local_resolution.estimate(first, second, pixel_size, bands, progress)
    inside = audited(motion)
    resolved = inside & (local.resolution < UNRESOLVED * local.lowest)
    beliefs = classify(local.resolution, resolved, audit)
    shares = {}
    for belief in Belief:
        chosen = (beliefs == belief) & inside
        shares[belief] = float(chosen.sum()) / max(1, int(inside.sum()))
    return LocalVerdict(maps.mean, local.resolution, beliefs, shares)


def classify(resolution: Tensor, resolved: Tensor, audit: Audit) -> Tensor:
    """Values "D D D" of `Belief`, from the local resolution (Å) and where there is one at all.

    At rest is what moves, and what the halves differ by, less than a tenth of the local resolution.
    """
    limit = AT_REST_SHARE * resolution
    at_rest = (audit.maps["displacement"] < limit) & (audit.maps["disagreement"] < limit)
    moving = audit.maps["believed"] > 0
    beliefs = torch.full_like(resolution, float(Belief.MAP_ALONE))
    beliefs[at_rest] = float(Belief.MAP_AT_REST)
    beliefs[moving & ~at_rest] = float(Belief.MAP_AND_MOTION)
    beliefs[~resolved] = float(Belief.NOTHING)
    return beliefs


def with_verdict(audit: Audit, verdict: LocalVerdict) -> Audit:
    """The audit, among whose maps are those of the verdict."""
    return replace(audit, maps={**audit.maps, **verdict.maps()})
