"""Cheap checks of particles before anything is fitted: what cannot be right ends the run, what is
doubtful is told in a line with its remedy.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import splits
from instamap.data.checks import (
    column_values,
    half_sets,
    pixel_sizes,
    repeated_images,
    views,
)
from instamap.data.checks.finding import Finding, named
from instamap.data.checks.image_values import Inspector
from instamap.data.particle_table import ParticleTable
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.progress import Progress
from instamap.statistics import contrast
from instamap.statistics.contrast import Contrast
from instamap.workflows import quick_statistics
from instamap.workflows.settings import Settings

CONTRAST_IMAGES = 400  # of the map by which the contrast is told
CONTRAST_BOX = 32  # its voxels along an edge
CONTRAST_NOISE_IMAGES = 250  # by which its noise is told
MIN_CONTRAST_IMAGES = 8


def of_table(
    table: ParticleTable, headers: Sequence[tuple[Path, float]], settings: Settings
) -> list[Finding]:
    """Findings for which no image is read. headers: each stack and its pixel size in Å."""
    path = str(table.path)
    findings = column_values.check(table)
    findings += pixel_sizes.check(table, headers)
    findings += views.check(table.rotation, path, settings.point_group)
    if table.half is not None and settings.halves:
        findings += half_sets.check(table.half, path, table.terms["half"])
    return findings


def of_copies(particles: Particles) -> list[Finding]:
    """Findings of images that are there under several names."""
    same = particles.same_pixels.numpy()
    return repeated_images.check(particles.stacks, same, particles.path)


def measure_images(particles: Particles) -> Inspector:
    """What measures the images when they are read, from here on."""
    particles.inspector = Inspector(particles)
    return particles.inspector


def outliers(particles: Particles, settings: Settings, progress: Progress) -> Tensor:
    """Rows "m" of wild images, which are left out where that is asked for; else none.

    All images are read for it. From here on images are measured when they are read.
    """
    inspector = measure_images(particles)
    if not settings.exclude_outliers:
        return torch.zeros(0, dtype=torch.long)
    inspector.scan()
    rows = inspector.wild()
    what = f"images that are far stronger than the others, {named(rows)}" if len(rows) else "none"
    progress.message(f"left out        {len(rows)} of {particles.count}: {what}")
    inspector.leave_out(rows)
    return rows


def of_images(particles: Particles) -> list[Finding]:
    """Findings of the images that have been read, by which those that follow are judged."""
    return [] if particles.inspector is None else particles.inspector.findings_so_far()


def of_later_images(particles: Particles) -> list[Finding]:
    """Findings of images that were read since."""
    return [] if particles.inspector is None else particles.inspector.later()


def of_contrast(particles: Particles, rows: Tensor) -> list[Finding]:
    """The finding of dark protein in images of `rows`. A map that cannot be made says nothing."""
    try:
        measured = measure_contrast(particles, rows)
    except DataError:
        return []
    return [] if measured is None else finding_of_contrast(particles, measured)


def finding_of_contrast(particles: Particles, measured: Contrast) -> list[Finding]:
    """The finding of dark protein, if that was measured."""
    if not measured.is_dark:
        return []
    value = (
        f"protein is dark in the images of '{particles.path}': the dark side of a first map"
        f" explains {measured.dark:.3g} nats of images that it was not made of, its white side"
        f" {measured.white:.3g}"
    )
    now = particles.preprocessor.steps.invert
    remedy = "leave out --invert" if now else "add --invert, since protein has to be white"
    return [Finding("contrast", value, remedy)]


def measure_contrast(particles: Particles, rows: Tensor) -> Contrast | None:
    """The contrast of some of the images of `rows`, scaled down; None of too few."""
    if len(rows) < MIN_CONTRAST_IMAGES:
        return None
    chosen = splits.at_equal_steps(rows, CONTRAST_IMAGES)
    sets = {"one": chosen[::2], "two": chosen[1::2]}
    _, found = quick_statistics.gather(
        particles, CONTRAST_BOX, chosen, sets, noise_images=CONTRAST_NOISE_IMAGES
    )
    return contrast.measure(found["one"], found["two"])
