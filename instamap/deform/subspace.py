"""No deformation, but different states: for what comes and goes rather than bends."""

from dataclasses import dataclass
from typing import Literal

from instamap.deform.identity import Identity
from instamap.plugin.options import Options, option


class Subspace(Identity):
    """x: coordinates order the particles, and each state has a map of its own, from the particles
    near it (engine states).

    They are found in the linear subspace of maps V₀ + Σ z_j V_j in which particles differ.
    """

    states = "weigh"

    @dataclass(frozen=True)
    class Options(Options):
        latent: Literal["auto", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] = option(
            1, "coordinates per particle; auto: what held-out images favour"
        )
