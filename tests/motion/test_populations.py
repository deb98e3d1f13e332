"""Populations from known likelihoods: shares, intervals that cover, wells, regions, tables."""

import csv
import math

import numpy as np
import pytest
import torch

from instamap.errors import DataError, OptionError
from instamap.motion import (
    energy_profile,
    mixing_weights,
    population_tables,
    populations,
    regions,
)
from instamap.motion.energy_profile import FitLikelihood
from instamap.motion.regions import Region

PLACES = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
SHARE = 0.3  # of the particles, that are at 1; the others are at -1
LEFT = Region("left", ((-math.inf, 0.0),))


def fits_of(
    seed: int, count: int = 400, latent: int = 2, even: bool = False
) -> tuple[list[FitLikelihood], torch.Tensor]:
    """Two fits, each with the particles of the other, and the state of each particle.

    Views are uneven: two particles of five show hardly anything of their state. Conformations lie
    on a line; a second coordinate, 0 throughout, makes no profile.
    even: particles are everywhere instead, from -1.2 to 1.2.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    state = torch.rand(count, generator=generator, dtype=torch.float64) < SHARE
    blind = torch.rand(count, generator=generator) < 0.4
    strength = torch.where(blind, 0.2, 2.0).double()
    z = 2.0 * state - 1
    if even:
        z = 2.4 * torch.rand(count, generator=generator, dtype=torch.float64) - 1.2
    seen = strength * z + normal()
    log_prob = -0.5 * (seen[:, None] - strength[:, None] * PLACES) ** 2
    likelihood = mixing_weights.relative_likelihood(log_prob)
    nodes = torch.zeros(len(PLACES), latent, dtype=torch.float64)
    nodes[:, 0] = PLACES
    found = []
    for number in range(2):
        particle = torch.arange(number, count, 2)
        found.append(
            FitLikelihood(
                f"half{number + 1}", nodes, PLACES + 1.5, "Å", particle, likelihood[particle]
            )
        )
    return found, state


def test_shares_are_those_of_the_states_though_views_are_uneven():
    """Assigned to the likeliest conformation, half of the blind particles are wrong."""
    fits, state = fits_of(0, count=20_000)
    found = populations.estimate(fits, [LEFT], replicates=20)
    [(region, share)] = found.regions
    true = float((~state).double().mean())
    assert region.name == "left" and abs(share.value - true) < 0.015
    assert share.low < true < share.high and share.high - share.low < 0.04
    assigned = torch.cat([fit.likelihood.argmax(1) for fit in fits])
    counted = float((PLACES[assigned] < 0).double().mean())
    assert abs(counted - true) > 0.03
    assert max(weights.gap for weights in found.weights) <= mixing_weights.MAX_GAP


@pytest.mark.slow
def test_intervals_cover():
    """In at least 90 of 100 repeats, of 95 expected."""
    covered = 0
    for seed in range(100):
        fits, _ = fits_of(seed)
        [(_, share)] = populations.estimate(fits, [LEFT], replicates=40, seed=seed).regions
        covered += share.low <= 1 - SHARE <= share.high
    assert covered >= 90


def test_halves_that_differ_widen_intervals():
    fits, state = fits_of(0)
    first, second = fits
    chosen = state[second.particle] | (torch.arange(len(second.particle)) % 3 == 0)
    biased = FitLikelihood(
        second.name,
        second.nodes,
        second.place,
        second.unit,
        second.particle[chosen],
        second.likelihood[chosen],
    )
    [(_, alike)] = populations.estimate(fits, [LEFT], replicates=40).regions
    [(_, differ)] = populations.estimate([first, biased], [LEFT], replicates=40).regions
    one, other = differ.of_fits
    assert abs(one - other) > 0.15
    assert differ.high - differ.low > 1.5 * (alike.high - alike.low)
    assert differ.low < min(one, other) and differ.high > max(one, other)


def test_wells_are_found():
    """Two of a single coordinate, as deep as they are; and one where particles are everywhere."""
    fits, state = fits_of(0, count=4000, latent=1)
    found = populations.estimate(fits, replicates=20)
    true = float((~state).double().mean())
    [(first, left), (second, right)] = found.regions
    assert first.bounds[0][1] == second.bounds[0][0] and abs(first.bounds[0][1]) < 0.6
    assert left.low < true < left.high and abs(left.value + right.value - 1) < 1e-9
    profile = found.profile
    assert profile is not None and found.stiffness in mixing_weights.STIFFNESS
    middle, low, high = profile.cumulative
    assert bool((middle.diff() >= 0).all()) and bool((low <= middle).all() & (middle <= high).all())
    assert float(profile.energy[0].min()) == pytest.approx(0, abs=1e-9)
    everywhere, _ = fits_of(0, count=2000, latent=1, even=True)
    [(region, share)] = populations.estimate(everywhere, replicates=20).regions
    assert region.bounds == ((-math.inf, math.inf),) and share.value == pytest.approx(1)


def test_the_profile_of_a_gaussian_is_a_parabola():
    """-log of N(0, 0.5²) rises by 2 kT to z = 1."""
    generator = torch.Generator().manual_seed(0)
    count = 8000
    z = 0.5 * torch.randn(count, generator=generator, dtype=torch.float64)
    seen = z + 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)
    nodes = torch.linspace(-1.6, 1.6, 17, dtype=torch.float64)
    likelihood = mixing_weights.relative_likelihood(-0.5 * ((seen[:, None] - nodes) / 0.3) ** 2)
    fits = []
    for number in range(2):
        particle = torch.arange(number, count, 2)
        fits.append(
            FitLikelihood("half", nodes[:, None], nodes, "Å", particle, likelihood[particle])
        )
    profile = populations.estimate(fits, replicates=20).profile
    assert profile is not None
    middle = (profile.z[1:] + profile.z[:-1]) / 2
    for place in (-1.0, 1.0):
        piece = int((middle - place).abs().argmin())
        assert float(profile.energy[0][piece]) == pytest.approx(2.0, abs=0.7)


def test_tables(tmp_path):
    fits, _ = fits_of(0, latent=1)
    found = populations.estimate(fits, replicates=20)
    population_tables.write(tmp_path, found)
    with (tmp_path / "populations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(PLACES) and {row["half"] for row in rows} == {"half1", "half2"}
    total = sum(float(row["population"]) for row in rows if row["half"] == "half1")
    assert total == pytest.approx(1, abs=1e-5)
    data = np.loadtxt(tmp_path / "profile.csv", delimiter=",", skiprows=1)
    assert data.shape == (energy_profile.GRID, 8) and np.isfinite(data).all()
    states = tmp_path / "states.csv"
    states.write_text("state,file,z1,particles,resolution\n1,a.mrc,-1,9,4.2\n2,b.mrc,1,3,\n")
    for _ in range(2):  # columns of an earlier call are replaced
        population_tables.add_to_states(states, found)
        with states.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[-2:] == ["population", "minus_log_population"] and len(rows[0]) == 7
        shares = [float(row["population"]) for row in rows]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and 0.6 < shares[0] < 0.8
        assert float(rows[0]["minus_log_population"]) == pytest.approx(-math.log(shares[0]), 1e-4)
        assert rows[1]["file"] == "b.mrc" and rows[1]["resolution"] == ""
    states.write_text("name\nmine\n")
    with pytest.raises(DataError, match="has no columns z1; write it again"):
        population_tables.add_to_states(states, found)


@pytest.mark.parametrize(
    "bounds, words",
    [(":0.243", "below 0.243"), ("-1:0", "-1 to 0"), ("0.5:", "0.5 and above"), (":", "all")],
)
def test_bounds_of_a_region_in_words(bounds, words):
    [region] = regions.parse([f"closed={bounds}"], 1)
    assert region.first_bounds == words


def test_regions_that_are_named():
    [closed, corner] = regions.parse(["closed=-1:0", "corner=0.5:,:0"], 2)
    z = torch.tensor([[-0.5, 3], [0.0, -1], [0.5, -1], [-1, 0]])
    assert closed.contains(z).tolist() == [True, False, False, True]
    assert corner.contains(z).tolist() == [False, False, True, False]
    assert corner.record() == [[0.5, None], [None, 0.0]]
    names = [region.name for region in regions.pieces([0.5, -0.5])]
    assert names == ["below -0.5", "-0.5 to 0.5", "from 0.5"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["closed"], 'region is "closed"; it must be a name and bounds'),
        (["=0:1"], "it must be a name and bounds"),
        (["a=0"], "two numbers with a colon"),
        (["a=0:x"], "two numbers with a colon"),
        (["a=1:0"], "first bound must be below the second"),
        (["a=0:1,0:1"], "bounds of 2 coordinates, but particles have 1"),
        (["a=0:1", "a=1:2"], "region 'a' is given twice"),
    ],
)
def test_regions_that_are_none(words, said):
    with pytest.raises(OptionError, match=said):
        regions.parse(words, 1)


def test_dips_that_low_barriers_part_are_one_well():
    energy = torch.tensor([3.0, 0.0, 5.0, 1.0, 1.5, 0.5, 4.0], dtype=torch.float64)

    def height(start: int, barrier: int, end: int) -> float:
        before = float(energy[start : barrier + 1].min())
        return float(energy[barrier]) - max(before, float(energy[barrier:end].min()))

    found = regions.find_wells(energy, height)
    assert (found.wells, found.barriers) == ([1, 5], [2])
    assert regions.find_wells(energy, lambda *_: 0.0).wells == [1]
