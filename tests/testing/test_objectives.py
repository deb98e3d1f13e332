"""The contract kit itself, on objectives: each wrong one is caught by the laws beside it.

That the right ones pass is tested in tests/laws.
"""

import pytest
import torch

from instamap.fitting.images import MiniBatches
from instamap.fitting.normal import NormalEquations
from instamap.testing import ObjectiveLaws
from instamap.testing.scenes import Case


class NeedsAll(NormalEquations):
    needs = "everything"


class RefusesNothing(NormalEquations):
    @classmethod
    def reason_against(cls, parts):
        return None


class CutOff(NormalEquations):
    """A loss that no parameter has a part in, but for a gradient of zero."""

    def __call__(self, model, generator):
        return super().__call__(model, generator).detach() + 0 * self.first(model).sum()

    def first(self, model):
        return next(model.parameters())


class CountsFromElsewhere(NormalEquations):
    def held_out(self):
        return super().held_out() + 1.0


class SwappedDecay(NormalEquations):
    def follow(self, model, decay):
        super().follow(model, 1 - decay)


class ForgetsItsJitter(NormalEquations):
    """Jitter that was widened is narrow again in a fit that goes on."""

    def state_dict(self):
        return {**super().state_dict(), "cell": self.model_cell, "widened": False}

    @property
    def model_cell(self):
        return self.regulariser.cell


class ForgetsTheEpoch(MiniBatches):
    """Begins to draw anew in a fit that goes on."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.queue = self.data.rows[:0]


class SharesItsAverage(NormalEquations):
    """What it says of its state changes with it."""

    def average_state(self):
        return self.average


class LeavesStatisticsBehind(NormalEquations):
    def to(self, device):
        fitted = self.fitted
        super().to(device)
        self.fitted = fitted
        return self


class MakesTensorsOnTheCpu(NormalEquations):
    def __call__(self, model, generator):
        weights = torch.ones(model.scene.box)
        return super().__call__(model, generator) + (weights * self.line()).sum()

    def line(self):
        return self.lattice.block.whole_map(self.average)[0, 0]


STATE = "state_dict_holds_all_that_changes"
RESUMED = "stopped_and_resumed_equals_not_stopped"
DEVICE = "a_step_can_be_taken_on_another_device"
WRONG = {
    NeedsAll: {"what_it_needs_is_declared"},
    RefusesNothing: {"what_it_cannot_describe_is_refused_in_words"},
    CutOff: {"loss_reaches_every_parameter"},
    CountsFromElsewhere: {"the_start_is_worth_nothing"},
    SwappedDecay: {"an_average_without_memory_is_the_present"},
    ForgetsItsJitter: {STATE},
    ForgetsTheEpoch: {STATE, RESUMED},
    SharesItsAverage: {STATE},
    LeavesStatisticsBehind: {DEVICE},
    MakesTensorsOnTheCpu: {DEVICE},
}


def holds(laws: ObjectiveLaws, name: str) -> bool:
    law = getattr(laws, name)
    try:
        if hasattr(law, "hypothesis"):
            law.hypothesis.inner_test(laws, Case(3, 8, 2.0, 3))
        else:
            law()
    except Exception:  # also what torch raises where devices differ
        return False
    return True


def failed(made: type) -> set[str]:
    """The laws that an objective breaks, without "test_"."""

    class Laws(ObjectiveLaws):
        options = {"batch": 5} if made.needs == "images" else {}

        def load(self):
            return made

    names = [name for name in dir(Laws) if name.startswith("test_")]
    return {name.removeprefix("test_") for name in names if not holds(Laws(), name)}


def test_right_ones_pass():
    assert failed(NormalEquations) == set()
    assert failed(MiniBatches) == set()


@pytest.mark.parametrize("made", WRONG)
def test_a_wrong_one_is_caught(made):
    assert failed(made) >= WRONG[made]
