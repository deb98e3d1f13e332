"""What is settled before anything is fitted: particles, noise, sets, then what each fit may see.

The first half depends on all particles, so that shards of one set agree on it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import noise, splits
from instamap.data.checks.finding import settle
from instamap.data.particles import Particles
from instamap.errors import CompositionError, DataError
from instamap.fitting import stages
from instamap.fitting.objective import FitData, ImageData, StatisticsData, distinct_images
from instamap.geometry.cube import Cube
from instamap.geometry.sampling import dilate
from instamap.maps import mask
from instamap.model import check_compatible, compose, make_part
from instamap.parts import GaussianLikelihood, HasBodies, RefinesNoise
from instamap.plugin.choice import Choice, choose, load_class
from instamap.progress import SILENT, Progress
from instamap.scene import Scene
from instamap.statistics import initial_map, noise_refinement
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.workflows import (
    extent,
    image_contrast,
    middle,
    preflight,
    requirements,
    team,
)
from instamap.workflows.image_contrast import MeasuredContrast
from instamap.workflows.resume import KeptStatistics
from instamap.workflows.settings import Settings
from instamap.workflows.shard import ALL_ROWS, Shard
from instamap.workflows.shared_statistics import Gather, gather
from instamap.workflows.statistics_folder import SETS, StatisticsFolder
from instamap.workflows.team import ImageSource

MAX_FIRST_MAP_IMAGES = 2000  # of the first map of objectives that need no statistics
HELD_OUT = "held_out"
WORTH_CROPPING = 0.9  # of the edge that was gathered, at most


@dataclass(frozen=True)
class Dataset:
    """Particles that were read and checked.

    scene: with the user's mask, if any. rows: row numbers of each set that is fitted; held_out: of
    the one that tells when to stop. symmetry "S 3 3": rotations, None for C1. weights "n": of every
    particle's log p, None for 1. cube: outside which nothing is gathered. contrast: what was found
    of the images' contrasts, which the particles' views have where they count; None where nobody
    asked.
    """

    particles: Particles
    scene: Scene
    rows: dict[str, Tensor]
    held_out: Tensor
    symmetry: Tensor | None
    weights: Tensor | None
    cube: Cube
    contrast: MeasuredContrast | None = None

    @property
    def sets(self) -> dict[str, Tensor]:
        """Row numbers of each set that is fitted and of the held-out one."""
        return {**self.rows, HELD_OUT: self.held_out}


@dataclass(frozen=True)
class Prepared:
    """A scene with its mask and scale, and what each fit may see.

    particles: None where statistics on disk took their place. scene: of what is fitted, with its
    mask; of the cube that holds the molecule where there are statistics. image_scene: of the images
    as they were read, with the user's mask, if any. mask_was_found: in a first map. contrast: see
    `Dataset`.
    """

    particles: Particles | None
    scene: Scene
    image_scene: Scene
    fits: dict[str, FitData]
    mask_was_found: bool
    contrast: MeasuredContrast | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each set and of the held-out one."""
        first = next(iter(self.fits.values()))
        counts = {name: data.count for name, data in self.fits.items()}
        return {**counts, HELD_OUT: first.held_out_count}

    def whole_scene(self) -> Scene:
        """The scene of the images, with the mask and the scale of what is fitted."""
        window = self.image_scene.mask
        if window is None and self.scene.mask is not None:
            window = middle.cube_of(self.scene).whole_map(self.scene.mask)
        return replace(self.image_scene, mask=window, density_scale=self.scene.density_scale)


def open_dataset(
    settings: Settings, progress: Progress = SILENT, shard: Shard = ALL_ROWS
) -> Dataset:
    """Reads and checks the particles, estimates the noise, draws the sets, finds contrasts. Raises
    InstamapError.

    What is doubtful of the particles is told in notes. shard: the rows whose images will be used;
    all else is the same for all shards.
    """
    particles = Particles.open(
        settings.particles, datadir=settings.datadir, preprocess=settings.preprocess
    )
    headers = particles.stacks.header_pixel_sizes
    settle(preflight.of_table(particles.table, headers, settings), progress)
    window = None
    if settings.mask:
        window = mask.load(settings.mask, particles.box, particles.pixel_size)
    excluded = preflight.outliers(particles, settings, progress)
    rows, held_out = draw_sets(particles, settings, excluded)
    settle(preflight.of_copies(particles), progress)
    weights = _weights(particles, settings, {**rows, HELD_OUT: held_out})
    spectra = noise.estimate(particles, _without(particles, excluded), seed=settings.seed)
    settle(preflight.of_images(particles), progress)
    settle(preflight.of_contrast(particles, torch.cat(list(rows.values()))), progress)
    scene = Scene(
        box=particles.box,
        pixel_size=particles.pixel_size,
        count=particles.count,
        premultiplied=particles.premultiplied,
        mask=window,
        noise_variance=spectra.float(),
        bodies=_bodies(settings, particles),
    )
    check_compatible(settings.parts, scene.premultiplied)
    symmetry = settings.point_group
    cube = Cube.whole(particles.box)
    if settings.extent == "molecule":
        fitted = torch.cat(list(rows.values()))
        cube = extent.find(particles, fitted, window, symmetry=symmetry, weights=weights)
    if not cube.is_whole:
        progress.message(f"extent          {cube} hold the molecule; elsewhere is nothing")
    dataset = Dataset(particles, scene, rows, held_out, symmetry, weights, cube)
    dataset = _with_refined_noise(dataset, settings)
    if settings.contrast == "none":
        return dataset
    return _with_contrast(dataset, settings, progress, shard)


def _with_contrast(
    dataset: Dataset, settings: Settings, progress: Progress, shard: Shard
) -> Dataset:
    """The dataset with the factors of its images, where held-out ones favour them."""
    particles = dataset.particles
    wanted = shard.holds(torch.arange(particles.count))
    fitted = torch.cat(list(dataset.rows.values()))
    wanted[noise_refinement.sample(fitted)] = True
    measured = image_contrast.measure(
        particles,
        dataset.scene,
        dataset.rows,
        dataset.held_out,
        particles.exclusive_groups(settings.group_by),
        wanted,
        symmetry=dataset.symmetry,
        weights=dataset.weights,
    )
    if measured is None:
        return dataset
    progress.message(f"contrast        {measured.line}")
    dataset = replace(dataset, contrast=measured)
    if measured.factors is None:
        return dataset
    dataset = replace(dataset, particles=particles.with_contrast(measured.factors))
    return _with_refined_noise(dataset, settings)


def _without(particles: Particles, excluded: Tensor) -> Tensor:
    """Row numbers of all particles but those that are excluded."""
    rows = torch.arange(particles.count)
    return rows[~torch.isin(rows, excluded)]


def _weights(particles: Particles, settings: Settings, sets: dict[str, Tensor]) -> Tensor | None:
    """Factors "n" of every particle's log p. Raises DataError where a set has none above 0."""
    if settings.weights is None:
        return None
    weights = particles.weights(settings.weights)
    for name, rows in sets.items():
        if not weights[rows].sum() > 0:
            raise DataError(
                f"{settings.weights} of '{particles.path}' is 0 for all {len(rows)} particles of"
                f" {name}; weigh some of them"
            )
    return weights


def _with_refined_noise(dataset: Dataset, settings: Settings) -> Dataset:
    """The dataset with the noise measured again on what a first map leaves, where that is asked
    for.
    """
    choice = settings.likelihood
    likelihood_class = load_class("likelihood", choice.name)
    if not issubclass(likelihood_class, RefinesNoise):
        return dataset
    if not likelihood_class.refines_noise(choice.options):
        return dataset
    scene = dataset.scene
    likelihood = make_part("likelihood", choice, scene)
    fitted = torch.cat(list(dataset.rows.values()))
    spectra = noise_refinement.refine(
        dataset.particles,
        fitted,
        likelihood,
        scene,
        cube=dataset.cube,
        symmetry=dataset.symmetry,
    )
    return replace(dataset, scene=replace(scene, noise_variance=spectra))


def _bodies(settings: Settings, particles: Particles) -> Tensor | None:
    """Masks "M D D D" of the bodies that the deformation names, if it does."""
    choice = settings.deformation
    deformation = load_class("deformation", choice.name)
    if not issubclass(deformation, HasBodies):
        return None
    files = deformation.body_files(choice.options)
    if not files:
        return None
    masks = [mask.load(Path(file), particles.box, particles.pixel_size) for file in files]
    return torch.stack(masks)


def draw_sets(
    particles: Particles, settings: Settings, excluded: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Row numbers of each fit and of the held-out set, which are the same for the same settings.

    excluded: rows that no set gets. Raises DataError where one is empty.
    """
    group = particles.exclusive_groups(settings.group_by)
    half = particles.split(settings.seed, settings.group_by) if settings.halves else None
    rows, held_out = splits.draw_sets(
        group, half, held_out=settings.held_out, seed=settings.seed, excluded=excluded
    )
    for name, chosen in {**rows, HELD_OUT: held_out}.items():
        if not len(chosen):
            raise DataError(
                f"no particles are left for {name} of the {particles.count} in"
                f" '{settings.particles}'; give more, mend rlnRandomSubset, or add --no-halves"
            )
    return rows, held_out


def prepare(settings: Settings, progress: Progress = SILENT) -> Prepared:
    """What each fit may see: read from the images, or taken from statistics on disk.

    settings: resolved, so that the objective is known. Raises InstamapError.
    """
    if settings.statistics:
        return _prepare_statistics(settings)
    return prepare_dataset(open_dataset(settings, progress), settings, progress)


def prepare_dataset(dataset: Dataset, settings: Settings, progress: Progress = SILENT) -> Prepared:
    """What each fit may see of particles that have been read and checked."""
    check_stages(settings, dataset.scene)
    if needs_statistics(settings):
        return _gather_statistics(dataset, settings, progress)
    return _gather_sample(dataset, settings, progress)


def needs_statistics(settings: Settings) -> bool:
    """Whether the objective is made with statistics rather than images."""
    assert settings.objective is not None  # settings are resolved
    return load_class("objective", settings.objective.name).needs == "statistics"


def check_stages(settings: Settings, scene: Scene) -> None:
    """Raises CompositionError for a stage in which nothing learns."""
    if settings.stages:
        stages.check(compose(settings.parts, scene), settings.stages)


def _gather_statistics(dataset: Dataset, settings: Settings, progress: Progress) -> Prepared:
    """The statistics of each set and the held-out one."""
    likelihood = make_part("likelihood", settings.likelihood, dataset.scene)
    if not isinstance(likelihood, GaussianLikelihood):
        raise CompositionError(
            f"likelihood '{settings.likelihood.name}' is not Gaussian, and objective"
            f" '{_objective_name(settings)}' needs statistics of Gaussian noise; choose"
            " --likelihood gaussian or --objective images"
        )
    if dataset.particles.box >= extent.MIN_BOX:
        _tell_needs(dataset, settings, progress)
    statistics = _statistics_of_sets(dataset, likelihood, settings, progress)
    settle(preflight.of_later_images(dataset.particles), progress)
    held_out = statistics.pop(HELD_OUT)
    distinct = distinct_images(dataset.particles, dataset.held_out)
    scene, fits, mask_was_found = _fit_data(dataset.scene, statistics, held_out, distinct)
    return Prepared(dataset.particles, scene, dataset.scene, fits, mask_was_found, dataset.contrast)


def _tell_needs(dataset: Dataset, settings: Settings, progress: Progress) -> None:
    """Says what the run needs. Raises OptionError where the memory does not suffice."""
    rows = next(iter(dataset.rows.values()))
    needs = requirements.measure(dataset.particles, rows, settings, dataset.cube)
    needs.check()
    progress.message(
        f"needs           about {needs.memory / 1e9:.1f} GB, {needs.reading:.0f} s to read,"
        f" {needs.step:.2g} s for a step of all fits (most take {requirements.STEPS})"
    )


def _statistics_of_sets(
    dataset: Dataset, likelihood: GaussianLikelihood, settings: Settings, progress: Progress
) -> dict[str, Statistics]:
    """The statistics of each set and the held-out one, by this process or by several."""
    together = team.of_run(settings, dataset.particles, progress)
    if together is not None:
        task = Gather(
            ImageSource.of(dataset.particles),
            dataset.scene,
            dataset.sets,
            dataset.cube,
            dataset.symmetry,
            dataset.weights,
            settings.device,
        )
        return gather(together, task, progress)
    kept = KeptStatistics(list(dataset.sets), progress)
    return accumulate(
        dataset.particles,
        dataset.sets,
        likelihood,
        cube=dataset.cube,
        symmetry=dataset.symmetry,
        weights=dataset.weights,
        progress=progress,
        device=settings.device,
        before=kept.load(),
        checkpoint=kept,
    )


def _gather_sample(dataset: Dataset, settings: Settings, progress: Progress) -> Prepared:
    """The images themselves; a first map comes from the statistics of a sample of them."""
    fitted = torch.cat(list(dataset.rows.values()))
    sample = {"first": splits.at_equal_steps(fitted, MAX_FIRST_MAP_IMAGES)}
    likelihood = make_part("likelihood", choose("likelihood", "coloured"), dataset.scene)
    statistics = accumulate(
        dataset.particles,
        sample,
        likelihood,
        cube=dataset.cube,
        symmetry=dataset.symmetry,
        weights=dataset.weights,
        progress=progress,
        device=settings.device,
    )
    fits: dict[str, FitData] = {}
    for name, rows in dataset.rows.items():
        fits[name] = ImageData(dataset.particles, rows, dataset.held_out)
    scene, mask_was_found = with_mask_and_scale(dataset.scene, [statistics["first"]])
    return Prepared(dataset.particles, scene, dataset.scene, fits, mask_was_found, dataset.contrast)


def _prepare_statistics(settings: Settings) -> Prepared:
    """What each fit may see, from statistics on disk alone."""
    assert settings.statistics is not None
    folder = StatisticsFolder.open(settings.statistics)
    folder.check(settings)
    scene = folder.scene
    if settings.mask:
        scene = replace(scene, mask=mask.load(settings.mask, scene.box, scene.pixel_size))
    check_compatible(settings.parts, scene.premultiplied)
    check_stages(settings, scene)
    if not needs_statistics(settings):
        raise CompositionError(
            f"objective '{_objective_name(settings)}' needs images: the statistics in"
            f" '{folder.path}' hold no images; choose normal"
        )
    one, two, held_out = (folder.statistics(name) for name in SETS)
    if settings.halves:
        sets = dict(zip(splits.HALVES, (one, two), strict=True))
    else:
        sets = {splits.WHOLE: one + two}
    if scene.mask is not None:
        _check_inside(scene.mask, one.cube, settings)
    fitted, fits, mask_was_found = _fit_data(scene, sets, held_out, None)
    return Prepared(None, fitted, scene, fits, mask_was_found)


def _fit_data(
    scene: Scene, sets: dict[str, Statistics], held_out: Statistics, distinct: int | None
) -> tuple[Scene, dict[str, FitData], bool]:
    """What is fitted, as if the cube that was gathered was the box: its scene with mask and scale,
    and what each fit may see of the statistics, which is what they say of the cube that holds the
    mask. Also whether the mask was found.

    The sets are emptied, since each takes much memory.
    """
    box = held_out.cube.centred()
    scene = middle.scene_of(scene, box)
    for name, statistics in sets.items():
        sets[name] = middle.statistics_of(statistics, box)
    held_out = middle.statistics_of(held_out, box)
    scene, mask_was_found = with_mask_and_scale(scene, list(sets.values()))
    assert scene.mask is not None  # it was given or found
    cube = Cube.around(dilate(scene.mask), held_out.cube)
    if cube.edge > WORTH_CROPPING * held_out.edge:
        cube = held_out.cube  # cropping takes longer than what it saves
    held_out = held_out.crop(cube)
    fits: dict[str, FitData] = {}
    for name in list(sets):
        fits[name] = StatisticsData(sets.pop(name).crop(cube), held_out, distinct)
    return scene, fits, mask_was_found


def _check_inside(window: Tensor, cube: Cube, settings: Settings) -> None:
    """Raises DataError where a mask reaches beyond what was gathered."""
    inside = cube.of(window) > 0
    if int(inside.sum()) < int((window > 0).sum()):
        needed = Cube.around(window > 0)
        raise DataError(
            f"mask '{settings.mask}' reaches from voxel {needed.low} to {needed.high - 1}, but the"
            f" statistics in '{settings.statistics}' were gathered for {cube}; accumulate again"
            " with --extent box"
        )


def with_mask_and_scale(scene: Scene, sample: list[Statistics]) -> tuple[Scene, bool]:
    """The scene with its mask and the density's scale, from a first map of these statistics.

    Also whether the mask was found there, since the scene had none.
    """
    total = sum(sample[1:], start=sample[0])
    sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    first = initial_map.solve(total, sphere)
    window = scene.mask
    if window is None:
        window = initial_map.find_mask(first, scene.pixel_size, scene.image_box)
    scale = initial_map.density_scale(first, window)
    return replace(scene, mask=window, density_scale=scale), scene.mask is None


def _objective_name(settings: Settings) -> str:
    choice: Choice | None = settings.objective
    return choice.name if choice else "auto"
