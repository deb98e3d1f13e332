"""Maps of conformations from the particles near them: for what comes and goes, which no bending
brings about.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.fitting.conformations import ConformationData
from instamap.fitting.loop import FitResult, optimise
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import StatisticsData
from instamap.model import Model
from instamap.motion.bend import MotionFit, fit_density, on_cpu, single_density_options
from instamap.motion.state_mixture import neighbours
from instamap.statistics.particle_statistics import MIN_RELATIVE_SHARE
from instamap.statistics.statistics import Statistics

# σ, in steps between conformations, of the weight that particles of neighbours have.
WIDTH = 1.0


@dataclass(frozen=True)
class WeightedMaps:
    """Maps "K D D D" of conformations; the model and the result of the last fit."""

    maps: Tensor
    model: Model
    result: FitResult


def fit_maps(fit: MotionFit, data: ConformationData) -> WeightedMaps:
    """A map of each conformation from statistics that are weighted by its neighbours' distance.

    Where the scene has a focus, what is outside of it is one map, that of all particles, which is
    held; the conformations' own densities are fitted to what it leaves.
    """
    scene = fit.scene
    assert scene.mask is not None  # it was found
    window = scene.mask
    rest = None
    whole = fit
    if scene.focus is not None:
        rest = _held(fit, data, scene.focus) * (scene.mask > 0)
        window = scene.mask * scene.focus
        fit = replace(fit, scene=replace(scene, mask=window))
    inside = window > 0  # maps are means over jitter, which reaches beyond
    shared = torch.ones(1, 1)
    if len(data.z) > 1:
        shared = neighbours(data.z.double(), WIDTH)
    model = fit.model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    maps = []
    results = []
    for k, weights in enumerate(shared.T):
        model.load_state_dict(start)
        fitted = _weighted(data.fitted, weights)
        held_out = _weighted(data.held_out, weights)
        if rest is not None:
            fitted = _beside(fitted, rest)
            held_out = _beside(held_out, rest)
        statistics = StatisticsData(fitted, held_out=held_out)
        objective = NormalEquations(single_density_options(fit.options), model, statistics)
        result = optimise(
            model,
            objective,
            generator=fit.generator(),
            progress=fit.progress,
            name=f"{fit.name} conformation {k + 1}",
        )
        result = on_cpu(result)
        own = result.map * inside
        maps.append(own if rest is None else rest + own)
        results.append(result)
    of_scene = whole.model()
    of_scene.load_state_dict(model.state_dict())
    return WeightedMaps(torch.stack(maps), of_scene.cpu(), results[-1])


def _held(fit: MotionFit, data: ConformationData, focus: Tensor) -> Tensor:
    """The density "D D D" of all particles that is outside the focus."""
    alike = torch.ones(len(data.z), dtype=torch.float64)
    everybody = StatisticsData(
        _weighted(data.fitted, alike), held_out=_weighted(data.held_out, alike)
    )
    whole = fit_density(fit, everybody, "consensus").result.map
    return whole * (1 - focus)


def _beside(statistics: Statistics, rest: Tensor) -> Statistics:
    """What images say of a density beside another one "D D D", which is there."""
    there = statistics.apply(statistics.cube.of(rest))
    return replace(statistics, b=statistics.b - there)


def _weighted(statistics: Sequence[Statistics], weights: Tensor) -> Statistics:
    """Σ w S of the statistics that count."""
    least = MIN_RELATIVE_SHARE * weights.max()
    pairs = zip(statistics, weights, strict=True)
    scaled = [one.scaled(float(weight)) for one, weight in pairs if weight > least]
    total = scaled[0]
    for one in scaled[1:]:
        total = total + one
    return total
