"""Stages of a fit: what learns and how fast, where they end, what run.toml keeps of them."""

import pytest
import torch

from instamap.errors import CompositionError, OptionError
from instamap.fitting import loop, stages
from instamap.fitting.objective import FitData, Objective, ObjectiveOptions
from instamap.fitting.stage import Stage
from instamap.model import compose, default_parts
from instamap.plugin.options import from_dict, parse, to_dict
from instamap.scene import Scene
from instamap.toml_text import read_toml, write_toml

SCENE = Scene(box=8, pixel_size=2.0, count=5, noise_variance=torch.ones(1, 5))


def _model(deformation="identity"):
    return compose(default_parts(deformation), SCENE)


class HundredHeldOut(FitData):
    """A hundred images that were held out."""

    count = 5
    held_out_count = 100
    held_out_weight = 100.0


class _Scripted(Objective):
    """Held-out likelihoods as written down, and a note of what it was asked to do; the loss is the
    sum of all parameters.
    """

    def __init__(self, model, script, **options):
        super().__init__(ObjectiveOptions(evaluate_every=1, **options), model, HundredHeldOut())
        self.script = iter(script)
        self.retries = 0
        self.rates = []
        self.jitters = []
        self.average = torch.zeros(())

    def __call__(self, model, generator):
        self.jitters.append(self.jitter)
        self.rates.append({kind: p.detach().clone() for kind, p in _first(model).items()})
        return sum(p.sum() for p in model.parameters() if p.requires_grad)

    def follow(self, model, decay):
        self.average = self.average + 1  # counts steps

    def held_out(self):
        return next(self.script)

    def retry(self):
        self.retries += 1
        return self.retries == 1

    def average_state(self):
        return self.average

    def load_average(self, state):
        self.average = state

    def map(self):
        return torch.ones(8, 8, 8) * self.average


def _first(model):
    """A parameter of each part that learns."""
    return {group["part"]: group["params"][0] for group in model.parameter_groups()}


def _fit(script, some=(Stage(),), model=None, **options):
    model = model or _model()
    objective = _Scripted(model, script, **options)
    return (
        loop.optimise(model, objective, tuple(some), generator=torch.Generator().manual_seed(0)),
        objective,
        model,
    )


def test_a_fit_that_turns_tries_once_more_and_returns_to_its_best_evaluation():
    fit, objective, _ = _fit([1, 2, 3, 2, 2, 2, 2.5, 2.6, 2.7, 9], patience=3)
    assert [evaluation.held_out for evaluation in fit.evaluations] == [
        1,
        2,
        3,
        2,
        2,
        2,
        2.5,
        2.6,
        2.7,
    ]  # after the retry again three without a gain
    assert objective.retries == 2
    assert fit.best.step == 3
    assert (fit.map == 3).all()  # the average of the best evaluation, not of the last one


def test_a_fit_that_gains_less_than_the_tolerance_ends_without_another_try():
    fit, objective, _ = _fit([1, 2, 100, 100.1, 100.2, 100.3, 200], patience=3, tolerance=0.003)
    assert len(fit.evaluations) == 6
    assert objective.retries == 0
    assert fit.best.held_out == 100.3


def test_a_tolerance_of_zero_follows_the_smallest_gain():
    fit, *_ = _fit([100, 100.1, 100.2, 100.3, 100.4, 1, 1, 1, 1, 1, 1], patience=3, tolerance=0.0)
    assert fit.best.held_out == 100.4
    assert len(fit.evaluations) == 11


def test_a_stage_that_has_ended_hands_its_best_evaluation_to_the_next():
    fit, *_ = _fit([1, 5, 4, 3, 6], [Stage(steps=4), Stage(steps=1)], patience=9)
    assert [(evaluation.stage, evaluation.step) for evaluation in fit.evaluations] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 5),
    ]
    # Steps of the average: two until the best evaluation of the first stage, one more after it.
    assert (fit.map == 3).all()


def test_frozen_parts_stay_and_others_learn_at_their_rate():
    model = _model(deformation="rigid")
    before = {kind: p.detach().clone() for kind, p in _first(model).items()}
    _, objective, model = _fit(
        [1, 2, 3, 4],
        [Stage(steps=2, deformation=0.0), Stage(steps=2, representation=0.0, deformation=0.5)],
        model,
    )
    first = objective.rates[2]
    second = {kind: p.detach() for kind, p in _first(model).items()}
    assert torch.equal(first["deformation"], before["deformation"])
    assert not torch.equal(first["representation"], before["representation"])
    assert torch.equal(second["representation"], first["representation"])
    moved = (second["deformation"] - first["deformation"]).abs()
    rate = model.deformation.options.learning_rate
    assert torch.allclose(
        moved, torch.full_like(moved, 2 * 0.5 * rate), rtol=1e-4
    )  # Adam's steps under a constant gradient


def test_warm_up_and_decay_multiply():
    stage = Stage(warm_up=3, decay=0.01, representation=2.0)
    assert stage.rate("representation", 1, 100) == pytest.approx(2 * 0.25 * 0.01**0.01)
    assert stage.rate("representation", 100, 100) == pytest.approx(2 * 0.01)
    assert stage.rate("deformation", 50, 100) == pytest.approx(0.1)


def test_jitter_goes_from_one_factor_to_the_other():
    _, objective, _ = _fit(
        range(1, 6), [Stage(steps=4, jitter=2.0, jitter_end=1.0), Stage(steps=1, jitter=0.0)]
    )
    assert objective.jitters == [1.75, 1.5, 1.25, 1.0, 0.0]


def test_the_usual_stages_begin_with_one_density_for_all():
    assert [stage.deformation for stage in stages.usual(_model(deformation="rigid"))] == [0.0, 1.0]
    assert stages.usual(_model()) == (Stage(),)


def test_a_stage_in_which_nothing_learns_is_refused():
    with pytest.raises(
        CompositionError,
        match=r"stage 2 freezes all that learns \(representation\); give one a factor above 0",
    ):
        stages.check(_model(), (Stage(), Stage(representation=0.0)))
    stages.check(_model(deformation="rigid"), (Stage(representation=0.0),))


def test_run_toml_keeps_stages(tmp_path):
    some = (Stage(steps=5, deformation=0.0), Stage(jitter=2.0, jitter_end=0.5))
    write_toml(
        tmp_path / "run.toml",
        {"seed": 1, "engine": {"name": "normal"}, "stage": [to_dict(s) for s in some]},
    )
    found = read_toml(tmp_path / "run.toml")
    assert tuple(from_dict(Stage, table) for table in found["stage"]) == some
    assert found["seed"] == 1 and found["engine"] == {"name": "normal"}


def test_unknown_and_impossible_stages_name_the_remedy():
    with pytest.raises(
        OptionError, match=r"option 'step' of Stage is unknown; choose .* \(did you mean steps\?\)"
    ):
        parse(Stage, ["step=3"])
    with pytest.raises(
        OptionError, match="option 'decay' of Stage is 2.0; it must be a number from 1e-06 to 1"
    ):
        Stage(decay=2.0)
    with pytest.raises(CompositionError, match="freezes"):
        stages.check(_model(), (Stage(representation=0),))


def test_the_command_line_describes_a_stage():
    from support.command import instamap

    done = instamap("describe", "stage")
    assert done.code == 0
    assert "--stage" in done.out and "warm_up" in done.out and "jitter_end" in done.out
