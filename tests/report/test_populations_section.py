"""What a report says of populations: a density that is known, and shares with their intervals."""

import re

import torch

from instamap.motion import mixing_weights, populations
from instamap.motion.energy_profile import FitLikelihood, Profile
from instamap.report import populations_section

SHARE = 0.3  # of the particles, that are at 1; the others are at -1
PLACES = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)


def found(latent: int) -> populations.Populations:
    """Of two states whose particles are told apart."""
    generator = torch.Generator().manual_seed(1)
    state = torch.rand(600, generator=generator, dtype=torch.float64) < SHARE
    z = 2.0 * state - 1
    seen = z + 0.3 * torch.randn(600, generator=generator, dtype=torch.float64)
    log_prob = -0.5 * ((seen[:, None] - PLACES) / 0.3) ** 2
    nodes = torch.zeros(len(PLACES), latent, dtype=torch.float64)
    nodes[:, 0] = PLACES
    fits = []
    for number in range(2):
        particle = torch.arange(number, 600, 2)
        likelihood = mixing_weights.relative_likelihood(log_prob[particle])
        name = f"half{number + 1}"
        fits.append(FitLikelihood(name, nodes, PLACES + 1.5, "Å", particle, likelihood))
    return populations.estimate(fits, replicates=20)


def test_the_density_is_that_of_the_energy():
    """E = (x - 2)² / 2 over a way of 0 to 4 Å: a normal density, cut off at two deviations."""
    distance = torch.linspace(0, 4, 401, dtype=torch.float64)
    middle = (distance[1:] + distance[:-1]) / 2
    energy = 0.5 * (middle - 2) ** 2
    rows = torch.stack([energy, energy - 0.1, energy + 0.1])
    profile = Profile(distance, distance, "Å", torch.zeros(3, 401), rows)
    density = populations_section.density(profile)
    normal = torch.distributions.Normal(torch.tensor(2.0).double(), 1.0)
    inside = normal.cdf(torch.tensor(4.0).double()) - normal.cdf(torch.tensor(0.0).double())
    torch.testing.assert_close(
        density[0], normal.log_prob(middle).exp() / inside, rtol=1e-4, atol=0.0
    )
    assert (density[1] < density[0]).all() and (density[0] < density[2]).all()


def test_of_a_coordinate_it_shows_density_energy_and_wells():
    shown = populations_section.section(found(latent=1))
    assert shown.html.count("<figure") == 2 and "Shares of regions" in shown.html
    table = shown.html[shown.html.index("Shares of regions") :]
    shares = [float(cell) for cell in re.findall(r"<td>([0-9.]+)%</td>", table)]
    assert len(shares) == 2 and abs(sum(shares) - 100) < 0.2
    assert abs(shares[1] - 100 * SHARE) < 6


def test_of_several_coordinates_it_shows_shares_of_conformations():
    shown = populations_section.section(found(latent=2))
    assert "<figure" not in shown.html and shown.html.count("half1") == len(PLACES)
