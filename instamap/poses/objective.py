"""The engine of poses: normal equations of the map, with poses that are corrected in between (see
`reconstruct`).
"""

from dataclasses import dataclass

from instamap.fit.normal import NormalEquations
from instamap.plugin.options import option


class Poses(NormalEquations):
    """As `normal`, of particles whose poses are corrected in rounds: a Gauss-Newton step for each,
    then the map again.
    """

    @dataclass(frozen=True)
    class Options(NormalEquations.Options):
        rounds: int = option(
            6, "times, at most, that poses are corrected and the map is made again", low=1
        )
        newton: int = option(3, "Gauss-Newton steps for each particle in a round", low=1)
