"""Statistics gathered in shards, on many machines or with interruptions, and added up."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instamap.data.checks.finding import settle
from instamap.errors import CompositionError, DataError
from instamap.fitting.normal import NormalEquations
from instamap.model import make_part, part_classes
from instamap.progress import SILENT, Progress
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate as accumulate_statistics
from instamap.version import __version__
from instamap.workflows import preflight
from instamap.workflows.devices import CPU, choose_device, described
from instamap.workflows.output import OutputFolder
from instamap.workflows.prepare import Dataset, open_dataset
from instamap.workflows.settings import Settings
from instamap.workflows.shard import ALL_ROWS, Shard, missing_share
from instamap.workflows.statistics_folder import SETS, StatisticsFolder, hold


@dataclass(frozen=True)
class FolderCheckpoint:
    """Keeps the statistics of a set in a folder each time that the Fourier grid is emptied."""

    folder: StatisticsFolder

    def save(self, name: str, statistics: Statistics) -> None:
        """Keeps what has been gathered of the set called `name`."""
        statistics.save(self.folder.file(name))


def accumulate(
    settings: Settings,
    out: Path,
    *,
    shard: Shard = ALL_ROWS,
    force: bool = False,
    progress: Progress = SILENT,
) -> StatisticsFolder:
    """Gathers the statistics of a shard's images in the folder `out`, for which nothing is fitted.

    Noise and sets are those of all particles, so shards of one STAR file and seed add up. What is
    done is kept each time the Fourier grid is emptied (every 16,384 images over the order of the
    symmetry): the same call after an interruption goes on from there, with the same outcome to the
    last bit, and does nothing if all is done. Raises InstamapError, before anything is written if
    the particles, the settings or the folder are to blame; so it is where another is at work there.
    """
    _check_likelihood(settings)
    device = choose_device(settings.device)
    if device.type != CPU:
        progress.message(f"device          {described(device)}")
    with hold(out) as held:
        return _accumulate(settings, held, shard, force, progress, device)


def _accumulate(
    settings: Settings,
    held: OutputFolder,
    shard: Shard,
    force: bool,
    progress: Progress,
    device: torch.device,
) -> StatisticsFolder:
    """Gathers a shard's statistics in a folder that is held."""
    dataset = open_dataset(settings, progress, shard)
    rows = {name: chosen[shard.holds(chosen)] for name, chosen in dataset.sets.items()}
    folder = StatisticsFolder(held.path, _manifest(settings, dataset, shard, rows))
    likelihood = make_part("likelihood", settings.likelihood, dataset.scene)
    with folder.writable(held, force) as place:
        state = place.begin(force)
        _describe(folder, shard, progress)
        if state == "done":
            _resumed(folder, dict(folder.counts), progress)
            return folder
        before = {}
        if state == "resumed":
            before = _statistics_there(place, rows)
            _resumed(folder, {name: one.count for name, one in before.items()}, progress)
        accumulate_statistics(
            dataset.particles,
            rows,
            likelihood,
            cube=dataset.cube,
            symmetry=dataset.symmetry,
            weights=dataset.weights,
            progress=progress,
            before=before,
            checkpoint=FolderCheckpoint(place),
            device=device,
        )
        settle(preflight.of_later_images(dataset.particles), progress)
        place.end()
    return folder


def _statistics_there(folder: StatisticsFolder, names: Iterable[str]) -> dict[str, Statistics]:
    """What has been gathered already of the sets of these names."""
    files = {name: folder.file(name) for name in names}
    return {name: Statistics.load(file) for name, file in files.items() if file.exists()}


def _check_likelihood(settings: Settings) -> None:
    reason = NormalEquations.reason_against(part_classes(settings.parts))
    if reason is not None:
        raise CompositionError(
            f"statistics need one density for all particles and Gaussian noise, but {reason};"
            " choose --likelihood gaussian or coloured"
        )


def _describe(folder: StatisticsFolder, shard: Shard, progress: Progress) -> None:
    manifest = folder.manifest
    sets = ", ".join(f"{name} {count}" for name, count in folder.counts.items())
    progress.message(
        f"shard {shard} of {manifest['images']} images of {manifest['image_box']} px at"
        f" {manifest['pixel_size']:g} Å: {sets}"
    )


def _resumed(folder: StatisticsFolder, done: dict[str, int], progress: Progress) -> None:
    total = sum(folder.counts.values())
    progress.message(f"resumed: {sum(done.values())} of {total} images were there already")


def _manifest(
    settings: Settings, dataset: Dataset, shard: Shard, rows: dict[str, Tensor]
) -> dict[str, Any]:
    """What accumulate.toml says."""
    scene = dataset.scene
    assert scene.noise_variance is not None  # of every dataset
    with settings.particles.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "instamap": __version__,
        **settings.data_record(),
        "digest": digest,
        "shards": [str(shard)],
        "images": scene.count,
        "image_box": scene.box,
        "cube": [dataset.cube.low, dataset.cube.high],
        "pixel_size": scene.pixel_size,
        "premultiplied": scene.premultiplied,
        "noise_variance": scene.noise_variance.tolist(),
        "sets": {name: len(chosen) for name, chosen in rows.items()},
    }


def merge(paths: list[Path], out: Path, *, force: bool = False) -> StatisticsFolder:
    """Adds the statistics of disjoint shards and writes them to the folder `out`: to the last bit
    the same in whatever order they are given.

    Raises DataError, naming both, if two folders share a shard or were not gathered alike; nothing
    is written then.
    """
    folders = [StatisticsFolder.open(path) for path in paths]
    for number, folder in enumerate(folders):
        for other in folders[:number]:
            _check_mergeable(other, folder)
    folders.sort(key=_place_in_sum)
    counts = {name: sum(folder.counts[name] for folder in folders) for name in SETS}
    shards = [shard for folder in folders for shard in folder.shards]
    shards.sort(key=lambda shard: (shard.of, shard.number))
    if missing_share(shards) == 0:
        shards = [ALL_ROWS]
    words = [str(shard) for shard in shards]
    manifest = {**folders[0].manifest, "shards": words, "sets": counts}
    target = StatisticsFolder(out, manifest)
    sums = {name: _sum(folders, name) for name in SETS}
    with hold(out) as held, target.writable(held, force) as place:
        if place.begin(force) != "done":
            for name, total in sums.items():
                total.save(place.file(name))
            place.end()
    return target


def _place_in_sum(folder: StatisticsFolder) -> list[tuple[int, int]]:
    """By which folders are put in order: sums of rounded numbers depend on it."""
    return sorted((shard.of, shard.number) for shard in folder.shards)


def _sum(folders: list[StatisticsFolder], name: str) -> Statistics:
    """The sum over folders; one file is in memory at a time, beside the sum."""
    total = folders[0].statistics(name)
    for folder in folders[1:]:
        total = total + folder.statistics(name)
    return total


def _check_mergeable(one: StatisticsFolder, two: StatisticsFolder) -> None:
    both = f"'{one.path}' and '{two.path}' cannot be merged"
    reason = one.difference(two, beside=("shards", "sets"))
    if reason:
        raise DataError(f"{both}: {reason}; accumulate both with the same settings")
    for a in one.shards:
        for b in two.shards:
            if a.meets(b):
                raise DataError(f"{both}: shards {a} and {b} share images; give each image once")
