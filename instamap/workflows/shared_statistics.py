"""Statistics of one set of particles gathered by several processes: each reads a shard of the
images, and the first adds up.
"""

from dataclasses import dataclass

from torch import Tensor

from instamap.data.checks.finding import settle
from instamap.data.particles import Particles
from instamap.errors import OptionError
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
from instamap.workflows.shard import Shard

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
    """The statistics of each set, in the leader: its own shard's, and those of all others added in
    their order.
    """
    progress.message(f"processes       {processes.count}, each reads a share of the images")
    processes.tell_all(task)
    found = _of_own_shard(processes, particles, task, likelihood, progress)
    for name, statistics in found.items():
        total = statistics
        for rank in range(1, processes.count):
            total = total + processes.receive(rank, statistics)
        found[name] = total
    return found


def contribute(processes: Processes, settings: Settings) -> None:
    """Gathers this process's shard for the leader, who says when and of what. Raises
    InstamapError.
    """
    task: Task = processes.hear()
    particles = Particles.open(
        settings.particles, datadir=settings.datadir, preprocess=settings.preprocess
    )
    if task.contrast is not None:
        particles = particles.with_contrast(task.contrast)
    likelihood = make_part("likelihood", settings.likelihood, task.scene)
    found = _of_own_shard(processes, particles, task, likelihood, SILENT)
    settle(preflight.of_later_images(particles), SILENT)
    for statistics in found.values():
        processes.send(statistics)


def _of_own_shard(
    processes: Processes,
    particles: Particles,
    task: Task,
    likelihood: GaussianLikelihood,
    progress: Progress,
) -> dict[str, Statistics]:
    shard = Shard(processes.rank + 1, processes.count)
    rows = {name: chosen[shard.holds(chosen)] for name, chosen in task.rows.items()}
    return accumulate(
        particles,
        rows,
        likelihood,
        cube=task.cube,
        symmetry=task.symmetry,
        weights=task.weights,
        progress=progress,
    )
