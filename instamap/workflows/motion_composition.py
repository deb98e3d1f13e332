"""What comes and goes, beside what moves: the steps of workflow `motion` that look for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.fitting.parallel import run_in_threads
from instamap.motion import composed_domains, composition, find_motion
from instamap.motion.composition import Composition, RegionSearch
from instamap.motion.find_motion import (
    COMPOSITION,
    CONFORMATIONS,
    DOMAINS,
    DOMAINS_AND_COMPOSITION,
    CoarseMotion,
    Search,
)
from instamap.motion.ring import Shape
from instamap.progress import SILENT, Progress
from instamap.scene import ContrastFactors
from instamap.statistics.particle_statistics import fewer_pixels
from instamap.workflows import motion_fits
from instamap.workflows.motion_fits import Candidate, MotionInputs


@dataclass(frozen=True)
class FoundComposition:
    """What comes and goes in each set, and the inputs and motions in which it was found: those of
    images without factors of contrast.
    """

    inputs: MotionInputs
    motions: Mapping[str, CoarseMotion]
    compositions: Mapping[str, Composition]

    @property
    def share(self) -> list[float]:
        """The share of the particles that have each region, the mean over sets."""
        shares = torch.tensor([one.share for one in self.compositions.values()])
        return [float(value) for value in shares.mean(0)]


def find(
    inputs: MotionInputs, motions: Mapping[str, CoarseMotion], progress: Progress = SILENT
) -> FoundComposition | None:
    """The regions that come and go in all sets, None where there are none, or a focus says where
    particles may differ: regions are not held to it.

    inputs: without factors of contrast, which hide them: without a region an image has less
    contrast, and what the factors make of it is brighter all over.
    """
    if inputs.dataset.scene.focus is not None:
        return None
    names = list(motions)

    def look(name: str, serialised: Progress) -> RegionSearch:
        generator = motion_fits.coarse_fit(inputs, name, serialised).generator()
        return composition.search(motions[name], generator)

    agreed = composition.agree(run_in_threads(names, look, progress), motions)
    if not agreed[names[0]].count:
        return None

    def measure(name: str, serialised: Progress) -> Composition:
        return composition.measure(motions[name], agreed[name])

    found = FoundComposition(inputs, motions, run_in_threads(names, measure, progress))
    progress.message(f"composition     {regions_in_words(found.share)}")
    return found


def regions_in_words(share: list[float]) -> str:
    """What comes and goes, for people."""
    each = [f"{value:.0%}" for value in share]
    if len(each) == 1:
        return f"1 region comes and goes, present in {each[0]}"
    return f"{len(each)} regions come and go, present in {', '.join(each[:-1])} and {each[-1]}"


def without_contrast(inputs: MotionInputs) -> MotionInputs:
    """The inputs with one contrast for all images; the same where they have no other."""
    dataset = inputs.dataset
    if dataset.particles.contrast is None:
        return inputs
    ones = torch.ones(dataset.particles.count, dtype=torch.float64)
    particles = dataset.particles.with_contrast(ContrastFactors(ones, ones))
    coarse = fewer_pixels(particles, inputs.coarse.pixel_size)
    plain = replace(dataset, particles=particles, contrast=None)
    return replace(inputs, dataset=plain, coarse=coarse)


def filled_up(
    composed: FoundComposition, search: Search, name: str, progress: Progress
) -> CoarseMotion:
    """The subspace in which the particles of one set differ once all have all regions."""
    motion = composed.motions[name]
    one = composed.compositions[name]
    fitted = composition.fill_up(motion.fitted, one.regions, one.present)
    held_out = composition.fill_up(motion.held_out, one.regions, one.held_out_present)
    fit = motion_fits.coarse_fit(composed.inputs, name, progress)
    group = motion_fits.duplicate_group(composed.inputs)
    filled = find_motion.find_subspace(fit, search, fitted, held_out, group)
    progress.message(
        f"{name}: with all regions everywhere, a linear subspace gives"
        f" {max(filled.subspace.gain):+.3g} nats/particle over the mean map"
    )
    return filled


def differ(motion: CoarseMotion) -> bool:
    """Whether validation particles are likelier by more than chance in the subspace of a set."""
    chance = math.log(1 / FALSE_POSITIVE_RATE)
    return max(motion.subspace.gain) * motion.validation_count > chance


def with_composition(
    name: str,
    composed: FoundComposition,
    candidate: Candidate,
    filled: Candidate | None,
    shape: Shape,
    progress: Progress,
) -> Candidate:
    """The candidate of one set with the descriptions in which regions come and go: alone, and
    beside the domains of particles that were filled up, whose coordinates have a shape.
    """
    motion = candidate.motion
    one = composed.compositions[name]
    of_one_map = candidate.descriptions[CONFORMATIONS].one_map
    described = {COMPOSITION: composed_domains.alone(one, motion.fitted.pixel_size)}
    if filled is not None and DOMAINS in filled.descriptions:
        moving = filled.descriptions[DOMAINS].domains
        assert moving is not None  # domains were found
        described[DOMAINS_AND_COMPOSITION] = composed_domains.beside(motion, one, moving)
    descriptions = dict(candidate.descriptions)
    for how, domains in described.items():
        description = composed_domains.describe(motion, domains, shape, of_one_map)
        descriptions[how] = description
        progress.message(
            f"{name}: {how}, {len(description.maps)}: {description.gain:+.3g} nats/particle over"
            " one rigid map"
        )
    return replace(candidate, descriptions=descriptions, composition=one)
