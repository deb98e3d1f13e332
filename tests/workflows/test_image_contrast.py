"""Factors of contrast in whole workflows: found where they are, left out where they are not."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import instamap
from instamap.maps import fsc, mrc
from instamap.model import make_part
from instamap.simulate import particle_set
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.exposure import Exposure
from instamap.statistics import initial_map
from instamap.statistics.contrast_factors import ImageContrasts
from instamap.statistics.streaming import accumulate
from instamap.workflows import image_contrast
from instamap.workflows.choose import resolve
from instamap.workflows.image_contrast import MeasuredContrast
from instamap.workflows.load_result import load_result
from instamap.workflows.prepare import Dataset, open_dataset
from instamap.workflows.settings import Settings
from instamap.workflows.shard import Shard

BOX = 24
PIXEL = 6.0
COUNT = 1600
SPREAD = 0.25
STEPS = {"steps": 10}


def make(folder: Path, scale: float, count: int = COUNT) -> tuple[Path, Tensor]:
    """A set and its true factors."""
    place, mass = molecule()
    specimen = Beads(place * BOX * PIXEL, mass, BOX, PIXEL)
    exposure = Exposure(0.1, scale=scale)
    written = particle_set.simulate(folder, specimen, particle_set.Plan(count), exposure, seed=3)
    return written.star, written.contrast


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> tuple[Path, Tensor]:
    return make(tmp_path_factory.mktemp("uneven"), SPREAD)


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("even"), 0.0)[0]


def settings(star: Path, **changes) -> Settings:
    return resolve(Settings(particles=star, **changes))


@pytest.fixture(scope="module")
def found(uneven) -> Dataset:
    return open_dataset(settings(uneven[0]))


def test_the_spread_and_the_factors_are_found(found, uneven):
    measured = found.contrast
    assert measured.counts
    assert measured.spread == pytest.approx(SPREAD, rel=0.2)  # by 1,500 images
    true = uneven[1]
    mean = found.particles.contrast.mean
    assert float(torch.corrcoef(torch.stack([mean, true]))[0, 1]) > 0.85
    assert float(mean.mean()) == pytest.approx(1, abs=0.02)
    error = (mean - true).square().mean()
    told = (found.particles.contrast.square - mean.square()).mean()
    assert float(told) == pytest.approx(float(error), rel=0.35)  # what it says of its own errors


def test_a_half_knows_nothing_of_the_other(uneven):
    """Other images in half 2 leave the factors of half 1 as they are, to the last bit."""
    plain = open_dataset(settings(uneven[0], contrast="none"))
    group = plain.particles.exclusive_groups()
    wanted = torch.ones(COUNT, dtype=torch.bool)
    whole = dict(plain.rows)
    fewer = {**whole, "half2": whole["half2"][:400]}
    factors = []
    for sets in (whole, fewer):
        measured = image_contrast.measure(
            plain.particles, plain.scene, sets, plain.held_out, group, wanted
        )
        factors.append(measured.factors.mean[whole["half1"]])
    assert torch.equal(factors[0], factors[1])


def test_no_image_meets_its_own_noise(uneven):
    """An image's own part is not in the map that it is held against."""
    plain = open_dataset(settings(uneven[0], contrast="none"))
    group = plain.particles.exclusive_groups()
    one = image_contrast.ContrastMeasurement(
        plain.particles, plain.scene, plain.rows, plain.held_out, group
    )
    for name, parts in one.sets.items():
        first, second = parts
        assert not torch.isin(first, second).any()
        assert torch.equal(torch.cat(parts).sort().values, plain.rows[name].sort().values)


def test_copies_of_an_image_are_in_one_part():
    group = torch.tensor([0, 0, 1, 2, 2, 3, 3, 3])
    first, second = image_contrast._halved(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]), group)
    assert not set(group[first].tolist()) & set(group[second].tolist())


def test_nothing_is_found_where_nothing_is(even):
    dataset = open_dataset(settings(even))
    assert not dataset.contrast.counts
    assert dataset.contrast.factors is None
    assert dataset.particles.contrast is None


def test_without_factors_all_is_as_it_was_to_the_last_bit(even):
    maps = [
        instamap.reconstruct(even, objective=("normal", STEPS), contrast=choice).maps
        for choice in ("auto", "none")
    ]
    for name, volume in maps[0].items():
        assert torch.equal(volume, maps[1][name])


def solved(dataset: Dataset, chosen: Settings) -> Tensor:
    """The map of all fitted images by normal equations, inside the mask of the first one."""
    likelihood = make_part("likelihood", chosen.likelihood, dataset.scene)
    rows = {"all": torch.cat(list(dataset.rows.values()))}
    statistics = accumulate(dataset.particles, rows, likelihood)["all"]
    return initial_map.solve(statistics, torch.ones_like(statistics.b), 4)


def test_the_map_is_nearer_to_the_truth(found, uneven):
    """The truth is for scoring alone."""
    truth = mrc.read(uneven[0].parent / "truth.mrc")[0]
    chosen = settings(uneven[0])
    plain = replace(found, particles=open_dataset(replace(chosen, contrast="none")).particles)
    with_factors = fsc.fsc(solved(found, chosen), truth)
    without = fsc.fsc(solved(plain, chosen), truth)
    assert float(with_factors.mean()) > float(without.mean())


def test_shards_have_the_same_factors_and_noise(found, uneven):
    chosen = settings(uneven[0])
    shard = Shard(1, 2)
    part = open_dataset(chosen, shard=shard)
    assert torch.equal(part.scene.noise_variance, found.scene.noise_variance)
    rows = torch.arange(COUNT)
    rows = rows[shard.holds(rows)]
    expected = found.particles.contrast.mean[rows]
    # but for the last bits: images are taken together in other numbers
    torch.testing.assert_close(part.particles.contrast.mean[rows], expected, rtol=1e-5, atol=1e-5)


def test_too_few_images_say_nothing(tmp_path):
    star, _ = make(tmp_path, SPREAD, count=60)
    assert open_dataset(settings(star)).contrast is None


def test_a_run_tells_and_writes_what_it_found(uneven, tmp_path):
    result = instamap.reconstruct(uneven[0], objective=("normal", STEPS))
    assert any("images differ by" in line for line in result.summary())
    assert result.facts()["contrast"]["used"] is True
    result.save(tmp_path / "out")
    with (tmp_path / "out" / "contrast.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT
    assert float(rows[5]["factor"]) == pytest.approx(float(result.contrast.factors.mean[5]), 1e-4)
    again = load_result(tmp_path / "out")
    assert again.contrast == replace(result.contrast, factors=None)
    assert again.contrast.counts


def test_small_spreads_are_left_alone():
    assert not MeasuredContrast(0.05, 1.0, 1000).counts
    assert not MeasuredContrast(0.2, 0.001, 1000).counts
    assert MeasuredContrast(0.2, 0.1, 1000).counts
    assert not MeasuredContrast(1.7, 0.1, 1000).counts
    assert "one for all images" in MeasuredContrast(0.05, 1.0, 1000).line


def test_images_that_say_nothing_of_a_map():
    empty = ImageContrasts(torch.zeros(3).double(), torch.zeros(3).double())
    prior = image_contrast.FactorPrior(1.0, 0.04)
    assert bool(prior.log_marginal(empty).isfinite().all())
    assert prior.factors(empty).mean.tolist() == pytest.approx([1.0] * 3)


def test_maps_that_are_mostly_noise_do_not_tell():
    noisy = MeasuredContrast(0.4, 0.3, 1000, explained=0.1)
    assert not noisy.counts
    assert "too noisy" in noisy.line
