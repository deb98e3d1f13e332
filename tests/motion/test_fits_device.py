"""Fits and models of a motion on a card: they run there, and what they give is on the CPU."""

import copy
from dataclasses import replace

import pytest
import torch
from support import bending
from torch._subclasses.fake_tensor import unset_fake_temporarily

from instamap.fitting.conformations import ConformationData, Conformations
from instamap.fitting.loop import FitResult
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import StatisticsData
from instamap.geometry.cube import Cube
from instamap.model import Model, compose, default_parts
from instamap.motion import bend, weighted_maps
from instamap.motion.bend import MotionFit
from instamap.plugin.choice import choose
from instamap.progress import SILENT
from instamap.statistics.statistics import Statistics
from instamap.testing.device import PRETENDED, pretended_device

CPU = torch.device("cpu")


@pytest.fixture
def brought_back(monkeypatch) -> list[Model]:
    """The models that were brought back to the CPU. A pretended one cannot be moved twice, nor be
    made where tensors have no values.
    """
    models = []

    def made(fit):
        with unset_fake_temporarily():
            model = compose(fit.parts, fit.scene, fit.seed)
        return model.to(fit.device)

    def moved(model):
        models.append(model)
        return model

    monkeypatch.setattr(MotionFit, "model", made)
    monkeypatch.setattr(Model, "cpu", moved)
    return models


@pytest.fixture
def fits(monkeypatch) -> list[torch.device]:
    """Where fits have run. Objectives, for which laws say as much, and evaluations would need
    values: each fit gives an empty map where it ran.
    """
    places = []

    class OfModel(NormalEquations):
        def __init__(self, options, model, data):
            self.device = next(model.parameters()).device

        def fitted_model(self, model):
            return model

    def optimise(model, objective, *stages, **words):
        place = objective.device
        places.append(place)
        edge = model.scene.box
        return FitResult(torch.zeros(edge, edge, edge, device=place), [], True)

    for module in (bend, weighted_maps):
        monkeypatch.setattr(module, "optimise", optimise)
        monkeypatch.setattr(module, "NormalEquations", OfModel)
    monkeypatch.setattr(bend, "Conformations", OfModel)
    return places


def fit_on(device: str) -> MotionFit:
    parts = {
        **default_parts("bending-field"),
        "representation": choose("representation", "voxel"),
        "deformation": choose("deformation", "bending-field", ["latent=1"]),
    }
    return MotionFit(parts, bending.SCENE, Conformations.Options(), 0, SILENT, "half1", device)


def with_mask(fit: MotionFit) -> MotionFit:
    box = fit.scene.box
    return replace(fit, scene=replace(fit.scene, mask=torch.ones(box, box, box)))


def statistics() -> Statistics:
    return Statistics.empty(Cube.whole(bending.BOX), bending.PIXEL)


def test_models_and_maps_of_fits_come_back(fits, brought_back, monkeypatch):
    """What neighbours have of each conformation is chosen by values."""
    monkeypatch.setattr(weighted_maps, "_weighted", lambda each, weights: each[0])
    data = ConformationData([statistics()] * 2, [statistics()] * 2, torch.tensor([[-1.0], [1.0]]))
    single = StatisticsData(statistics(), held_out=statistics())
    with pretended_device() as device:
        fit = fit_on(str(device))
        density = bend.fit_density(fit, single, "rigid")
        assert density.result.map.device == CPU
        model, result = bend.sharpen(fit, data, None)
        assert result.map.device == CPU
        maps = weighted_maps.fit_maps(with_mask(fit), data)
        assert maps.maps.device == CPU and maps.result.map.device == CPU
        for one in (density.model, model, maps.model):
            assert any(one is back for back in brought_back)
    assert fits == [PRETENDED] * 4


def test_a_bent_density_comes_back(fits, brought_back, monkeypatch):
    """The order in which conformations are drawn in follows from values."""
    monkeypatch.setattr(bend, "_outwards", lambda data: [0, 1])
    data = ConformationData([statistics()] * 2, [statistics()] * 2, torch.tensor([[-1.0], [1.0]]))
    with pretended_device() as device:
        assert bend.bend(fit_on(str(device)), data) is brought_back[0]
    assert set(fits) == {PRETENDED}


def test_a_motion_computes_there_and_answers_here(monkeypatch):
    """Points that conformations pull back, masks, and maps, whose voxels values choose."""
    made = bending.motion([bending.shift(3, 4, 0)], latents=torch.zeros(1, 1))
    x = torch.rand(5, 3)
    z = torch.ones(1)
    monkeypatch.setattr(copy, "deepcopy", lambda model: model)
    with pretended_device() as device:
        (half,) = made.to(device).halves
        assert half.device == device
        assert half.pull_back(x, z).device == CPU
        assert half.window(x).device == CPU
        there = torch.zeros(1, device=device)
        monkeypatch.setattr(half.model, "raster", lambda own: there + own.sum())
        assert half.conformation(z).device == CPU
