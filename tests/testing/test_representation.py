"""The contract kit itself, on representations: a right one passes every law.

Each wrong one is caught by the law beside it.
"""

from dataclasses import dataclass

import pytest
import torch
from support.kit import failed
from torch import nn

from instamap.parts import Representation
from instamap.testing import RepresentationLaws


class Wave(Representation):
    """a sin(k·x) + b, summed over waves; each mutant overrides one step."""

    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.k = nn.Parameter(torch.randn(3, 5) / scene.radius)
        self.a = nn.Parameter(torch.randn(5))
        self.register_buffer("b", torch.tensor(0.2))

    def forward(self, x):
        return torch.sin(x @ self.k) @ self.a + self.b


class SeesOtherPoints(Wave):
    def forward(self, x):
        value = super().forward(x)
        return value - value.mean() if value.numel() else value


class OnlyLists(Wave):
    def forward(self, x):
        value = super().forward(x)
        return value.reshape(len(value), -1)[:, 0] if value.ndim else value[None]


class StrayTensor(Wave):
    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.tables = {"coarse": [torch.zeros(3)]}


class ForgottenInCheckpoint(Wave):
    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.register_buffer("b", torch.rand(()), persistent=False)


class UnusedParameter(Wave):
    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.spare = nn.Parameter(torch.zeros(2))


class NotANumberAtTheOrigin(Wave):
    def forward(self, x):
        return super().forward(x) + torch.sqrt((x**2).sum(-1))


class Overflows(Wave):
    def forward(self, x):
        return super().forward(x) + torch.exp(0.1 * x.square().sum(-1) / self.scene.radius**2)


class DetachedFromPosition(Wave):
    def forward(self, x):
        return super().forward(x.detach())


class SinglePrecision(Wave):
    def forward(self, x):
        return super().forward(x.float().to(x.dtype))


class CancelsInSinglePrecision(Wave):
    def forward(self, x):
        return (super().forward(x) + 1e5) - 1e5


class Dropout(Wave):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@dataclass
class _Thawed:
    floor: str = "none"


class ThawedOptions(Wave):
    Options = _Thawed


REPRESENTATION = {
    Wave: set(),
    SeesOtherPoints: {"points_do_not_see_each_other"},
    OnlyLists: {"any_leading_shape"},
    StrayTensor: {"every_tensor_is_a_parameter_or_a_buffer"},
    ForgottenInCheckpoint: {"state_dict_round_trip"},
    UnusedParameter: {"gradient_reaches_every_parameter"},
    NotANumberAtTheOrigin: {"finite_everywhere"},
    Overflows: {"finite_everywhere"},
    DetachedFromPosition: {"gradient_with_respect_to_position"},
    SinglePrecision: {"gradient_with_respect_to_position"},
    CancelsInSinglePrecision: {"float32_and_float64_agree"},
    Dropout: {"is_a_function"},
    ThawedOptions: {"options_can_be_typed_and_recorded"},
}


@pytest.mark.parametrize("made", REPRESENTATION, ids=lambda made: made.__name__)
def test_representation(made):
    assert failed(RepresentationLaws, made, (8, 9)) >= REPRESENTATION[made]
