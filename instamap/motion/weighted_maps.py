"""Maps of states from the particles near them: for what comes and goes, which no bending brings
about.
"""

import torch
from torch import Tensor

from instamap.fit import loop
from instamap.fit.conformations import Conformations
from instamap.fit.normal import NormalEquations
from instamap.fit.objective import StatisticsData
from instamap.model import Model, compose
from instamap.motion import bend
from instamap.motion.state_mixture import neighbours
from instamap.plugin.choice import Choice
from instamap.scene import Scene
from instamap.statistics.particle_statistics import MIN_RELATIVE_SHARE
from instamap.statistics.statistics import Statistics

WIDTH = 1.0  # σ, in steps between states, of the weight that particles of neighbouring states have


def fit(
    parts: dict[str, Choice],
    scene: Scene,
    options: Conformations.Options,
    fitted: list[Statistics],
    judge: list[Statistics],
    z: Tensor,
    seed: int,
    watch: bend.Watch,
) -> tuple[Model, Tensor, loop.FitResult]:
    """A model of all particles, maps "K D D D" of the states at z "K L" from weighted statistics of
    `fitted`, and the last fit.
    """
    shared = neighbours(z.double(), WIDTH) if len(z) > 1 else torch.ones(1, 1)
    model = compose(parts, scene, seed)
    fields = []
    done = None
    start = model.state_dict()

    def weighed(some, k):
        return _sum(some, shared[:, k])

    start = {name: value.clone() for name, value in start.items()}
    for k in range(len(z)):
        model.load_state_dict(start)
        evidence = StatisticsData(weighed(fitted, k), held_out=weighed(judge, k))
        objective = NormalEquations(bend.still_options(options), model, evidence)
        generator = torch.Generator().manual_seed(seed)
        done = loop.optimise(
            model,
            objective,
            generator=generator,
            watch=lambda look, k=k: watch(f"state {k + 1}", look),
        )
        fields.append(done.map * (scene.mask > 0))
    return model, torch.stack(fields), done


def _sum(some: list[Statistics], weights: Tensor) -> Statistics:
    """Σ w S of the statistics that count."""
    kept = [
        (s.scaled(float(w)))
        for s, w in zip(some, weights, strict=True)
        if w > MIN_RELATIVE_SHARE * weights.max()
    ]
    return sum(kept[1:], start=kept[0])
