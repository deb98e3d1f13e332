"""Fits side by side: each with its share of the threads, reports one at a time, and none goes on
when another has failed.
"""

import threading
import time

import pytest
import torch

from instamap.fitting.parallel import run_in_threads
from instamap.model import compose, default_parts
from instamap.progress import Evaluation, Progress
from instamap.scene import Scene


@pytest.fixture
def two_threads(torch_threads):
    torch_threads(2)


class Told(Progress):
    """Keeps the lines that it is told, and how many calls there were at once at most."""

    def __init__(self, pause: float = 0.0):
        self.lines = []
        self.inside = []
        self.most = 0
        self.pause = pause

    def message(self, line):
        self.inside.append(line)
        self.most = max(self.most, len(self.inside))
        time.sleep(self.pause)
        self.inside.remove(line)
        self.lines.append(line)

    def images_read(self, done, total):
        self.message(f"{done} of {total}")

    def evaluated(self, fit, evaluation, steps):
        self.message(f"{fit} at {evaluation.step} of {steps}")

    def counted(self, what, done, total):
        self.message(f"{done} of {total} {what}")


def test_both_run_at_once_with_half_of_the_threads_each(two_threads):
    meet = threading.Barrier(2, timeout=20)

    def task(name, progress):
        meet.wait()  # breaks unless both are here
        return name.upper(), torch.get_num_threads()

    assert run_in_threads(["one", "two"], task) == {"one": ("ONE", 1), "two": ("TWO", 1)}
    assert torch.get_num_threads() == 2


def test_with_one_thread_they_come_in_turn():
    told = Told()
    assert torch.get_num_threads() == 1

    def task(name, progress):
        progress.message(name)
        return len(name)

    assert run_in_threads(["one", "three"], task, told) == {"one": 3, "three": 5}
    assert told.lines == ["one", "three"]


def test_reports_are_made_one_at_a_time(two_threads):
    told = Told(pause=0.001)

    def task(name, progress):
        for _ in range(50):
            progress.message(name)

    run_in_threads(["one", "two"], task, told)
    assert len(told.lines) == 100 and told.most == 1


def test_every_kind_of_report_is_passed_on():
    told = Told()

    def task(name, progress):
        progress.message("hello")
        progress.images_read(3, 4)
        progress.evaluated(name, Evaluation(5, 0.0, 0.0, True, 0.0), 9)
        progress.counted("maps", 1, 2)

    run_in_threads(["half1"], task, told)
    assert told.lines == ["hello", "3 of 4", "half1 at 5 of 9", "1 of 2 maps"]


@pytest.mark.parametrize(
    "failure", [ValueError("of one"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_a_failure_ends_the_other(two_threads, failure):
    told = Told()

    def task(name, progress):
        if name == "one":
            time.sleep(0.02)
            raise failure
        end = time.monotonic() + 20
        while time.monotonic() < end:
            progress.message(name)
            time.sleep(0.001)
        return "was not ended"

    start = time.monotonic()
    with pytest.raises(type(failure)):
        run_in_threads(["two", "one"], task, told)
    assert told.lines and time.monotonic() - start < 10


def test_models_start_alike_whoever_else_draws(two_threads):
    """Initial values come from a generator that all threads share."""
    scene = Scene(16, 4.0, count=1, noise_variance=torch.ones(1, 9))
    parts = default_parts()

    def task(name, progress):
        return compose(parts, scene, int(name)).state_dict()

    alone = [compose(parts, scene, seed).state_dict() for seed in (1, 2)]
    for _ in range(5):
        both = run_in_threads(["1", "2"], task)
        for one, other in zip(alone, both.values(), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(alone[0]["representation.table"], alone[1]["representation.table"])
