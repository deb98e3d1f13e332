"""What descriptions of the conformations gain over one map that all particles have alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.motion import posterior
from instamap.motion.state_mixture import log_prob
from instamap.statistics.contrast_factors import FactorPrior, ImageContrasts
from instamap.statistics.particle_images import ParticleImages

# of the contrast of particles, among which validation particles choose
CONTRAST_DEVIATIONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Conformations:
    """Maps "K N N N" of conformations at coordinates z "K L", of which the last are `occupancies`,
    0 or 1.
    """

    maps: Tensor
    z: Tensor
    occupancies: int = 0

    @property
    def one_map(self) -> Tensor:
        """What they say of particles that do not differ, "K+1 N N N": any of them, or their mean.

        A description may have a better map than others of what does not move, which is no motion.
        """
        return torch.cat([self.maps, self.maps.mean(0, keepdim=True)])

    def log_prob(self, test: ParticleImages) -> float:
        """log p of the particles, their conformation summed out: the mean."""
        found = posterior.infer(test, self.maps, self.z, self.occupancies)
        return test.mean(found.log_prob)


def log_prob_of_one_map(
    validation: ParticleImages, test: ParticleImages, rivals: Sequence[Tensor]
) -> float:
    """log p of the test particles under the likeliest of the maps `rivals`, some "K N N N" each:
    the mean, with one contrast or with one that differs from particle to particle, normally
    distributed about 1 with the deviation that validation particles favour, whichever is likelier.

    Conformations can also tell contrast apart, which is no motion.
    """
    volume, same_contrast = _best_map(test, rivals)
    of_validation = ImageContrasts.of(validation, volume)
    same = FactorPrior(1.0, 0.0)
    priors = [FactorPrior(1.0, deviation**2) for deviation in CONTRAST_DEVIATIONS]
    prior = max(priors, key=lambda one: validation.mean(one.log_marginal(of_validation)))
    images = ImageContrasts.of(test, volume)
    gain = test.mean(prior.log_marginal(images) - same.log_marginal(images))
    return same_contrast + max(0.0, gain)


def _best_map(test: ParticleImages, rivals: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The map "N N N" under which the test particles are likeliest, and log p of theirs."""
    each = torch.cat([log_prob(test, maps) for maps in rivals], 1)
    means = [test.mean(one) for one in each.T]
    best = max(means)
    return torch.cat(list(rivals))[means.index(best)], best
