"""Statistics of one set of particles gathered by several processes: each reads a share of the
images, and the first adds up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.checks.finding import settle
from instamap.data.particles import Particles
from instamap.errors import InstamapError, OptionError
from instamap.geometry.cube import Cube
from instamap.model import make_part
from instamap.parts import GaussianLikelihood
from instamap.plugin.choice import load_class
from instamap.progress import SILENT, Progress
from instamap.scene import ContrastFactors, Scene
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.workflows import preflight
from instamap.workflows.processes import Processes
from instamap.workflows.settings import Settings

SHARED_WORKFLOWS = ("map",)  # whose images several processes read


@dataclass(frozen=True)
class Task:
    """What the leader has settled, so that all gather alike.

    rows: row numbers of each set. cube, symmetry, weights: see `accumulate`. contrast: factors of
    the images' signal, None for 1.
    """

    scene: Scene
    rows: dict[str, Tensor]
    cube: Cube
    symmetry: Tensor | None
    weights: Tensor | None
    contrast: ContrastFactors | None


def check(settings: Settings, resume: bool, processes: Processes) -> None:
    """Raises OptionError for what several processes cannot share: anything but statistics of maps.

    settings: resolved.
    """
    started = f"torchrun has started {processes.count} processes, which share"
    alone = "run it without torchrun"
    assert settings.workflow is not None
    if settings.workflow.name not in SHARED_WORKFLOWS:
        raise OptionError(
            f"{started} the images of workflow 'map', and this is workflow"
            f" '{settings.workflow.name}'; {alone}"
        )
    assert settings.objective is not None
    if load_class("objective", settings.objective.name).needs != "statistics":
        raise OptionError(
            f"{started} statistics, and objective '{settings.objective.name}' has none; choose"
            f" --objective normal, or {alone}"
        )
    if resume:
        raise OptionError(f"{started} no run that was stopped; leave out --resume, or {alone}")


def gather(
    processes: Processes,
    particles: Particles,
    task: Task,
    likelihood: GaussianLikelihood,
    progress: Progress,
) -> dict[str, Statistics]:
    """The statistics of each set, in the leader: its own share's, and those of all others added in
    their order.
    """
    progress.message(f"processes       {processes.count}, each reads a share of the images")
    processes.tell_all(task)
    own = _of_share(processes.rank, processes, particles, task, likelihood, progress)
    some = next(iter(own.values()))  # the first share has images
    found = {}
    for name in task.rows:
        total = own.get(name)
        for rank in range(1, processes.count):
            if name in share_of(task.rows, rank, processes.count):
                more = processes.receive(rank, some)
                total = more if total is None else total + more
        assert total is not None  # every set has images
        found[name] = total
    return found


def contribute(processes: Processes, settings: Settings) -> None:
    """Gathers this process's share for the leader, who says when and of what. Raises
    InstamapError.
    """
    particles: Particles | InstamapError
    try:
        particles = Particles.open(
            settings.particles, datadir=settings.datadir, preprocess=settings.preprocess
        )
    except InstamapError as error:
        particles = error
    task: Task = processes.hear()  # does not return where the leader has met the same error
    if isinstance(particles, InstamapError):
        raise particles
    if task.contrast is not None:
        particles = particles.with_contrast(task.contrast)
    preflight.measure_images(particles)
    likelihood = make_part("likelihood", settings.likelihood, task.scene)
    found = _of_share(processes.rank, processes, particles, task, likelihood, SILENT)
    settle(preflight.of_images(particles), SILENT)
    for statistics in found.values():
        processes.send(statistics)


def share_of(rows: Mapping[str, Tensor], rank: int, count: int) -> dict[str, Tensor]:
    """Row numbers of each set that the process `rank` of `count` reads.

    All sets, one after the other, are cut into equal pieces: each process has images of few sets,
    since what ends a set costs the same for few images as for many.
    """
    total = sum(len(chosen) for chosen in rows.values())
    piece = torch.arange(total).tensor_split(count)[rank]
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


def _of_share(
    rank: int,
    processes: Processes,
    particles: Particles,
    task: Task,
    likelihood: GaussianLikelihood,
    progress: Progress,
) -> dict[str, Statistics]:
    return accumulate(
        particles,
        share_of(task.rows, rank, processes.count),
        likelihood,
        cube=task.cube,
        symmetry=task.symmetry,
        weights=task.weights,
        progress=progress,
    )
