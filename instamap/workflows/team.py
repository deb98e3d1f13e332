"""Processes at work: what the first of them asks of all, and how each keeps its part of the
particles in between.
"""

import functools
import itertools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.data.symmetry_expansion import Expansion
from instamap.errors import InstamapError
from instamap.fitting.parallel import Stopped
from instamap.progress import SILENT, Progress
from instamap.scene import ContrastFactors
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.workflows import preflight
from instamap.workflows.processes import Processes, current
from instamap.workflows.settings import Settings

NUMBER_ON_MACHINE = "LOCAL_RANK"  # of a process, which torchrun sets


@dataclass(frozen=True)
class ImageSource:
    """How the images of a run are read: with a row for each copy by symmetry or not, the factors of
    their contrast (None for 1), and how many pixels they have an edge.
    """

    expanded: bool
    contrast: ContrastFactors | None
    box: int

    @staticmethod
    def of(particles: Particles) -> "ImageSource":
        """How these are read."""
        return ImageSource(particles.table.copy is not None, particles.contrast, particles.box)


@dataclass(frozen=True)
class Part:
    """This process's part of some particles: `owner` "m" is the rank of the process that has each,
    the statistics are of its own, in their order (None where it has none).
    """

    owner: Tensor
    statistics: ParticleStatistics | None


class Member:
    """What one of the processes has: its number, the particles that the settings name, and its part
    of those that were read, by a number that the leader gives.
    """

    def __init__(self, processes: Processes, settings: Settings, particles: Particles) -> None:
        self.processes = processes
        self.settings = settings
        self.particles = particles
        self.parts: dict[int, Part] = {}

    @property
    def rank(self) -> int:
        return self.processes.rank

    def device(self, name: str) -> torch.device:
        """The device of this process where the leader has the device `name`: of the CUDA cards of a
        machine, each of its processes has its own, as far as there are enough.
        """
        device = torch.device(name)
        if device.type != "cuda":
            return device
        number = int(os.environ.get(NUMBER_ON_MACHINE, "0"))
        return torch.device("cuda", number % torch.cuda.device_count())

    @functools.cached_property
    def expanded(self) -> Particles:
        """The particles with a row for each copy by symmetry."""
        assert self.settings.point_group is not None  # or there are no copies
        return self.particles.expanded(Expansion(self.settings.point_group))

    def open(self, source: ImageSource) -> Particles:
        """The particles as they are read so."""
        found = self.expanded if source.expanded else self.particles
        if source.contrast is not None:
            found = found.with_contrast(source.contrast)
        return found if found.box == source.box else found.with_box(source.box)

    def carry_out(
        self, task: "Task", released: Sequence[int], progress: Progress = SILENT
    ) -> list[Tensor]:
        """Does its share of a task, after it has forgotten the parts that nobody needs."""
        for number in released:
            del self.parts[number]
        return task.carry_out(self, progress)


class Task(ABC):
    """What all processes do at once, each its share. It travels to them."""

    @abstractmethod
    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        """Does the share of one process; what it answers."""


class Team:
    """All processes, as the leader asks them: tasks are carried out one at a time, whichever thread
    asks.
    """

    def __init__(self, processes: Processes, settings: Settings, particles: Particles) -> None:
        self.processes = processes
        self._own = Member(processes, settings, particles)
        self._lock = threading.Lock()
        self._threads = torch.get_num_threads()
        self._released: list[int] = []
        self._failed = False
        self._numbers = itertools.count()

    @property
    def count(self) -> int:
        """The number of processes."""
        return self.processes.count

    def new_number(self) -> int:
        """A number for parts that all processes will have."""
        return next(self._numbers)

    def release(self, number: int) -> None:
        """Lets all processes forget parts, before they do anything else."""
        self._released.append(number)

    def ask(self, task: Task, progress: Progress = SILENT) -> list[list[Tensor]]:
        """What each process answers, in their order. Raises LostProcess where one is gone.

        Once a task has failed, answers to it may still be on their way: whoever asks again is
        stopped.
        """
        with self._lock:
            if self._failed:
                raise Stopped
            self._failed = True  # until all have answered
            answers = self._answers(task, progress)
            self._failed = False
        return answers

    def _answers(self, task: Task, progress: Progress) -> list[list[Tensor]]:
        released = list(self._released)
        del self._released[: len(released)]
        self.processes.tell_all((task, released))
        # A fit of several has a part of the threads; nobody else asks meanwhile.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            own = self._own.carry_out(task, released, progress)
        finally:
            torch.set_num_threads(before)
        others = [self.processes.receive(rank) for rank in range(1, self.count)]
        return [own, *others]


def of_run(settings: Settings, particles: Particles, progress: Progress) -> Team | None:
    """The processes that carry out this run, as the leader of them says; None for one alone."""
    processes = current()
    if processes is None:
        return None
    progress.message(f"processes       {processes.count}, each reads a share of the images")
    return Team(processes, settings, particles)


def contribute(processes: Processes, settings: Settings) -> None:
    """Does this process's share of all that the leader asks, until it asks no more. Raises
    InstamapError.
    """
    particles: Particles | InstamapError
    try:
        particles = Particles.open(
            settings.particles, datadir=settings.datadir, preprocess=settings.preprocess
        )
        preflight.measure_images(particles)
    except InstamapError as error:
        particles = error
    asked = processes.hear()  # does not return where the leader has met the same error
    if isinstance(particles, InstamapError):
        raise particles
    member = Member(processes, settings, particles)
    while asked is not None:
        task, released = asked
        processes.send(member.carry_out(task, released))
        asked = processes.hear()


def dismiss(processes: Processes) -> None:
    """Asks no more of the others."""
    processes.tell_all(None)
