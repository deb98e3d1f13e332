"""The contract kit itself, on deformations: a right one passes every law.

Each wrong one is caught by the law beside it.
"""

import pytest
import torch
from support.kit import failed
from torch import nn

from instamap.parts import Deformation, SharedDensity
from instamap.plugin.options import Options
from instamap.testing import DeformationLaws, IsometryLaws


class Drift(Deformation):
    """x + z, a translation for each particle."""

    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.table = nn.Parameter(torch.zeros(scene.count, 3))

    def latent(self, views):
        return self.table[views.index]

    def forward(self, x, z):
        return x + z[:, None]


class Shear(Drift):
    """An innocent deformation, but no isometry."""

    def forward(self, x, z):
        return x + z[:, None] * x[..., :1]


class MovedAtBirth(Drift):
    def forward(self, x, z):
        return super().forward(x, z) + 1e-3


class ByPlaceInBatch(Drift):
    def latent(self, views):
        return self.table[: len(views)]


class SeesThePose(Drift):
    def latent(self, views):
        return super().latent(views) * views.rotation[:, 0, :1]


class MeanOfBatch(Drift):
    def forward(self, x, z):
        return x + z.mean(0)


class CentresThePoints(Drift):
    def forward(self, x, z):
        return x + z[:, None] * (x.mean(1, keepdim=True) if x.shape[1] else 1)


class DetachedCoordinates(Drift):
    def forward(self, x, z):
        return x + self.table.mean() + z.detach()[:, None]


class Folds(Drift):
    def forward(self, x, z):
        return x + 1e5 * z[:, None] * x[..., :1]


class SameForAll(Drift, SharedDensity):
    """Says that it moves no particle, and does."""


class NoStepSize(Drift):
    Options = Options


class MirrorImage(Drift):
    def forward(self, x, z):
        return -x + z[:, None]


DEFORMATION = {
    Drift: set(),
    Shear: set(),
    MovedAtBirth: {"identity_at_birth"},
    ByPlaceInBatch: {"latent_belongs_to_the_particle"},
    SeesThePose: {"latent_belongs_to_the_particle"},
    MeanOfBatch: {"rows_are_independent"},
    CentresThePoints: {"points_do_not_see_each_other"},
    DetachedCoordinates: {"gradient_reaches_the_coordinates"},
    Folds: {"does_not_fold_space_near_birth"},
    SameForAll: {"latent_belongs_to_the_particle"},
    NoStepSize: {"is_a_deformation"},
}


@pytest.mark.parametrize("made", DEFORMATION, ids=lambda made: made.__name__)
def test_deformation(made):
    assert failed(DeformationLaws, made, (8, 9)) >= DEFORMATION[made]


@pytest.mark.parametrize(("made", "expected"), [(Drift, False), (Shear, True), (MirrorImage, True)])
def test_isometry(made, expected):
    assert ("distances_are_preserved" in failed(IsometryLaws, made, (8, 9))) is expected
