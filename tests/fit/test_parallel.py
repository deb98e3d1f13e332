"""Fits side by side: each with its share of the threads, reports one at a time, and none goes on
when another has failed.
"""

import threading
import time

import pytest
import torch

from instamap.fit.parallel import side_by_side
from instamap.model import compose
from instamap.plugin.choice import default_parts
from instamap.scene import Scene


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_both_run_at_once_with_half_of_the_threads_each(two_threads):
    meet = threading.Barrier(2, timeout=20)

    def task(name, guard):
        meet.wait()  # breaks unless both are here
        return name.upper(), torch.get_num_threads()

    assert side_by_side(["one", "two"], task) == {"one": ("ONE", 1), "two": ("TWO", 1)}
    assert torch.get_num_threads() == 2


def test_with_one_thread_they_come_in_turn():
    seen = []
    assert torch.get_num_threads() == 1
    assert side_by_side(["one", "two"], lambda name, guard: guard(seen.append)(name)) == {
        "one": None,
        "two": None,
    }
    assert seen == ["one", "two"]


def test_reports_are_made_one_at_a_time(two_threads):
    inside = []
    most = []

    def report(name):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.001)
        inside.remove(name)

    side_by_side(["one", "two"], lambda name, guard: [guard(report)(name) for _ in range(50)])
    assert len(most) == 100 and max(most) == 1


@pytest.mark.parametrize(
    "failure", [ValueError("of one"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_a_failure_ends_the_other(two_threads, failure):
    told = []

    def task(name, guard):
        if name == "one":
            time.sleep(0.02)
            raise failure
        report = guard(lambda: told.append(name))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            report()
            time.sleep(0.001)
        return "was not ended"

    start = time.monotonic()
    with pytest.raises(type(failure)):
        side_by_side(["two", "one"], task)
    assert told and time.monotonic() - start < 10


def test_models_are_born_alike_whoever_else_draws(two_threads):
    """Initial values come from a generator that all threads share."""
    scene = Scene(16, 4.0, count=1, noise_variance=torch.ones(1, 9))
    parts = default_parts()
    alone = [compose(parts, scene, seed).state_dict() for seed in (1, 2)]
    for _ in range(5):
        both = side_by_side(
            ["1", "2"], lambda name, guard: compose(parts, scene, int(name)).state_dict()
        )
        for one, other in zip(alone, both.values(), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(alone[0]["representation.table"], alone[1]["representation.table"])
