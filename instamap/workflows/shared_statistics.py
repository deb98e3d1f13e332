"""Statistics of sets of particles gathered by several processes: each reads a share of the images,
and the first adds up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.checks.finding import settle
from instamap.errors import OptionError
from instamap.geometry.cube import Cube
from instamap.model import make_part
from instamap.motion import domain_maps
from instamap.motion.domain_maps import DomainImages
from instamap.motion.domains import Placement
from instamap.plugin.choice import load_class
from instamap.progress import SILENT, Progress
from instamap.scene import Scene
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.workflows import preflight
from instamap.workflows.devices import CPU
from instamap.workflows.processes import Processes
from instamap.workflows.settings import Settings
from instamap.workflows.team import ImageSource, Member, Task, Team

SHARED_WORKFLOWS = ("map", "motion")  # whose images several processes read
NUMBERS = 3  # of tensors that statistics are sent as


@dataclass(frozen=True)
class Gather(Task):
    """Gathers statistics in the noise of the scene.

    rows: row numbers of each set. cube, symmetry, weights: see `accumulate`. device: see
    `Member.device`.
    """

    source: ImageSource
    scene: Scene
    rows: dict[str, Tensor]
    cube: Cube
    symmetry: Tensor | None = None
    weights: Tensor | None = None
    device: str = CPU

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        particles = member.open(self.source)
        found = accumulate(
            particles,
            share_of(self.rows, member.rank, member.processes.count),
            make_part("likelihood", member.settings.likelihood, self.scene),
            cube=self.cube,
            symmetry=self.symmetry,
            weights=self.weights,
            progress=progress,
            device=member.device(self.device),
        )
        if not member.processes.leads:  # who settles what it has read itself
            settle(preflight.of_images(particles), SILENT)
        return [tensor for one in found.values() for tensor in sent(one)]


@dataclass(frozen=True)
class GatherDomain(Task):
    """Gathers what images say of domain m: see `domain_maps.gather`."""

    source: ImageSource
    rows: Tensor
    variance: Tensor
    placement: Placement
    weights: Tensor | None
    present: Tensor | None
    densities: Tensor
    m: int
    device: str = CPU

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        particles = member.open(self.source)
        own = torch.arange(len(self.rows)).tensor_split(member.processes.count)[member.rank]
        if not len(own):
            return []
        images = DomainImages(
            particles,
            self.rows[own],
            self.variance,
            self.placement[own],
            self.weights,
            None if self.present is None else self.present[own],
            str(member.device(self.device)),
        )
        return sent(domain_maps.gather(images, self.densities, self.m))


def check(settings: Settings, resume: bool, processes: Processes) -> None:
    """Raises OptionError for what several processes cannot share: anything but statistics of maps
    and of motion.

    settings: resolved.
    """
    started = f"torchrun has started {processes.count} processes, which share"
    alone = "run it without torchrun"
    assert settings.workflow is not None
    if settings.workflow.name not in SHARED_WORKFLOWS:
        names = " and ".join(f"'{name}'" for name in SHARED_WORKFLOWS)
        raise OptionError(
            f"{started} the images of workflows {names}, and this is workflow"
            f" '{settings.workflow.name}'; {alone}"
        )
    assert settings.objective is not None
    if load_class("objective", settings.objective.name).needs == "images":
        raise OptionError(
            f"{started} statistics, and objective '{settings.objective.name}' has none; choose"
            f" --objective normal, or {alone}"
        )
    if resume:
        raise OptionError(f"{started} no run that was stopped; leave out --resume, or {alone}")


def gather(team: Team, task: Gather, progress: Progress = SILENT) -> dict[str, Statistics]:
    """The statistics of each set: the shares of all processes, added in their order."""
    answers = team.ask(task, progress)
    empty = Statistics.empty(task.cube, task.scene.pixel_size)
    found: dict[str, Statistics] = {}
    for rank, tensors in enumerate(answers):
        names = list(share_of(task.rows, rank, team.count))
        for number, name in enumerate(names):
            one = received(tensors[NUMBERS * number : NUMBERS * (number + 1)], empty)
            found[name] = found[name] + one if name in found else one
    return {name: found.get(name, empty) for name in task.rows}


def gather_domain(team: Team, images: DomainImages, densities: Tensor, m: int) -> Statistics:
    """What images say of domain m, gathered by all processes: see `domain_maps.gather`."""
    particles = images.particles
    task = GatherDomain(
        ImageSource.of(particles),
        images.rows,
        images.variance,
        images.placement,
        images.weights,
        images.present,
        densities,
        m,
        images.device,
    )
    empty = Statistics.empty(Cube.whole(particles.box), particles.pixel_size)
    return total(team.ask(task), empty)


def total(answers: list[list[Tensor]], empty: Statistics) -> Statistics:
    """The sum, in their order, of the statistics that processes have sent, if they had any."""
    each = [received(tensors, empty) for tensors in answers if tensors]
    return sum(each[1:], start=each[0]) if each else empty


def sent(statistics: Statistics) -> list[Tensor]:
    """Statistics as tensors."""
    sums = [float(statistics.count), statistics.weight, statistics.energy]
    return [statistics.b, statistics.kernel, torch.tensor(sums, dtype=torch.float64)]


def received(tensors: list[Tensor], empty: Statistics) -> Statistics:
    """The statistics that were sent, of the cube of `empty` ones."""
    b, kernel, sums = tensors
    count, weight, energy = sums.tolist()
    return replace(
        empty,
        b=b,
        kernel=kernel,
        count=int(count),
        weight=weight,
        energy=energy,
    )


def share_of(rows: Mapping[str, Tensor], rank: int, count: int) -> dict[str, Tensor]:
    """Row numbers of each set that the process `rank` of `count` reads.

    All sets, one after the other, are cut into equal pieces: each process has images of few sets,
    since what ends a set costs the same for few images as for many.
    """
    count_of_all = sum(len(chosen) for chosen in rows.values())
    piece = torch.arange(count_of_all).tensor_split(count)[rank]
    if not len(piece):
        return {}
    first, end = int(piece[0]), int(piece[-1]) + 1
    share = {}
    before = 0
    for name, chosen in rows.items():
        own = chosen[max(0, first - before) : max(0, end - before)]
        if len(own):
            share[name] = own
        before += len(chosen)
    return share
