"""Numbers below the smallest normal one: zero within a fit, as they were after it."""

import pytest
import torch

from instamap.fitting.denormals import flushed, flushes

SMALL = 1e-39
can_flush = torch.set_flush_denormal(True)
torch.set_flush_denormal(False)
pytestmark = pytest.mark.skipif(not can_flush, reason="this processor does not flush them")


def product() -> float:
    return float(torch.full((64,), 1e-20) @ torch.full((64,), SMALL / 1e-20))


def test_they_are_zero_within_the_block_alone():
    before = product()
    with flushed():
        within = product()
    assert before == pytest.approx(64 * SMALL, rel=1e-3)
    assert within == 0
    assert product() == before


def test_what_held_before_holds_after_an_error_too():
    for state in (False, True):
        torch.set_flush_denormal(state)
        try:
            with pytest.raises(ValueError), flushed():
                raise ValueError
            assert flushes() == state
        finally:
            torch.set_flush_denormal(False)
