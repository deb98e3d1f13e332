"""Whether anything moves is told by test particles that share no image with those that a fit or a
choice has seen.
"""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.command import instamap
from support.swinging import write

from instamap.errors import DataError
from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.model import default_parts
from instamap.motion import find_motion
from instamap.motion.bend import MotionFit
from instamap.motion.find_motion import (
    BENDING,
    CONFORMATIONS,
    DOMAINS,
    CoarseMotion,
    Description,
    Search,
)
from instamap.motion.ring import Shape
from instamap.motion.state_mixture import StateMixture
from instamap.plugin.choice import choose
from instamap.progress import SILENT
from instamap.workflows import motion_fits
from instamap.workflows.choose import resolve
from instamap.workflows.motion_fits import Candidate, Decision, MotionInputs
from instamap.workflows.settings import Settings


def found(gains: dict[str, float], test_count: int = 100) -> Candidate:
    maps = torch.zeros(3, 2, 2, 2)
    z = torch.zeros(3, 1)
    descriptions = {how: Description(maps, z, gain, 0.0) for how, gain in gains.items()}
    motion = CoarseMotion(None, None, None, None, None, None, test_count, test_count)
    return Candidate(motion, StateMixture(maps, z, 0.0), descriptions)


LINE = Shape(1)


def test_motion_needs_every_fit_and_more_than_chance():
    chance = math.log(1 / FALSE_POSITIVE_RATE) / 100  # nats a test particle, of 100
    enough = found({BENDING: 1.1 * chance})
    little = found({BENDING: 0.9 * chance})
    assert motion_fits.decide({"half1": enough, "half2": enough}, LINE).moving
    assert not motion_fits.decide({"half1": enough, "half2": little}, LINE).moving
    few = found({BENDING: 1.1 * chance}, test_count=90)
    assert not motion_fits.decide({"map": few}, LINE).moving, "fewer particles must be surer"
    tries = dict.fromkeys((DOMAINS, BENDING, CONFORMATIONS), 1.1 * chance)
    # the best of three exceeds chance more easily
    assert not motion_fits.decide({"map": found(tries)}, LINE).moving


def test_any_description_shows_motion_and_the_likeliest_tells_how():
    """Bending denied, while conformations with maps of their own gain in both halves."""
    halves = {
        "half1": found({BENDING: 11.3, CONFORMATIONS: 50.0}),
        "half2": found({BENDING: -5.7, CONFORMATIONS: 49.0}),
    }
    assert motion_fits.decide(halves, LINE) == Decision(LINE, True, CONFORMATIONS)
    halves = {
        "half1": found({DOMAINS: 3.0, BENDING: 5.0, CONFORMATIONS: 1.0}),
        "half2": found({DOMAINS: 3.0, BENDING: 2.0, CONFORMATIONS: 1.0}),
    }
    assert motion_fits.decide(halves, LINE) == Decision(LINE, True, BENDING)
    still = {"map": found({DOMAINS: -3.0, BENDING: -2.0, CONFORMATIONS: -1.0})}
    assert motion_fits.decide(still, LINE) == Decision(LINE, False, BENDING)


def test_a_map_for_each_conformation_must_gain_noticeably_more():
    assert (
        motion_fits.decide({"map": found({BENDING: 5.0, CONFORMATIONS: 5.2})}, LINE).description
        == BENDING
    )
    assert (
        motion_fits.decide({"map": found({BENDING: 5.0, CONFORMATIONS: 6.0})}, LINE).description
        == CONFORMATIONS
    )


def test_a_description_that_one_half_has_not_is_none():
    halves = {
        "half1": found({DOMAINS: 9.0, BENDING: 5.0}),
        "half2": found({BENDING: 5.0}),
    }
    assert motion_fits.decide(halves, LINE).description == BENDING


def chosen(options: dict, gains: dict[int, float], closed: bool = False, particles: int = 5000):
    """The shape that is chosen where each number of coordinates has such gains, and what was
    tried.
    """
    asked = choose("deformation", "bending-field", [f"{k}={v}" for k, v in options.items()])
    settings = SimpleNamespace(deformation=asked)
    angle = 2 * math.pi * torch.arange(16) / 16
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    tried = []
    generator = torch.Generator().manual_seed(0)  # some draws lie on a ring

    def mixtures(latent, count, rounds):
        tried.append((latent, count))
        z = circle if closed and latent == 2 else torch.randn(16, latent, generator=generator)
        return {"map": StateMixture(torch.zeros(16, 2, 2, 2), z, gains[latent])}

    motions = {"map": replace(found({}).motion, sample=SimpleNamespace(count=particles))}
    shape, _ = motion_fits.choose_shape(SimpleNamespace(settings=settings), motions, mixtures)
    return shape, tried


MORE = {1: 10.0, 2: 12.0, 3: 12.1}


def test_coordinates_are_added_while_they_gain():
    assert chosen({}, MORE) == (Shape(2), [(1, 1.0), (2, 1.0), (3, 1.0), (2, 2**1.5)])
    assert chosen({}, {1: 10.0, 2: 10.1})[0] == Shape(1)
    assert chosen({}, MORE, particles=499) == (Shape(1), [(1, 1.0)]), "too few for a plane"
    assert chosen({}, {1: 10.0, 2: 12.0, 3: 14.0})[0] == Shape(3)


def test_a_circle_is_found_and_can_be_ordered_or_ruled_out():
    closed = Shape(2, closed=True)
    assert chosen({}, MORE, closed=True)[0] == closed
    assert chosen({"latent": 1}, MORE, closed=True)[0] == closed
    assert chosen({"latent": 1}, MORE)[0] == Shape(1)
    assert chosen({"latent": 1, "topology": "line"}, MORE, closed=True) == (Shape(1), [(1, 1.0)])
    assert chosen({"topology": "circle"}, MORE)[0] == closed
    assert chosen({"topology": "line"}, MORE, closed=True)[0] == Shape(2)
    assert chosen({"latent": 2}, MORE, closed=True)[0] == Shape(2)


def test_what_a_run_records_repeats_its_shape():
    """A circle that was found has two columns, and is looked for as a circle."""
    for shape in (Shape(1), Shape(2), Shape(3), Shape(2, closed=True)):
        parts = find_motion.with_shape(default_parts("bending-field"), shape)
        recorded = parts["deformation"].options
        options = {"latent": recorded.latent, "topology": recorded.topology}
        assert chosen(options, {1: 10.0, 2: 10.1, 3: 10.2})[0] == shape


def inputs(folder, **plain) -> MotionInputs:
    settings = Settings(folder / "particles.star", deformation="bending-field", **plain)
    return motion_fits.open_inputs(resolve(settings), pixel_size=10.0)


def repeated(folder, times: int):
    """The set with each particle listed so many times."""
    star = folder / "particles.star"
    lines = star.read_text().splitlines()
    rows = [line for line in lines if "@" in line]
    first = lines.index(rows[0])
    star.write_text(
        "\n".join([*lines[:first], *[row for row in rows for _ in range(times)]]) + "\n"
    )


def test_copies_of_an_image_are_on_one_side(tmp_path, monkeypatch):
    """The validation and test parts share no image, though the copies may move on their own, and
    copies count once.
    """
    write(tmp_path, 120, 0.0, snr=1.0)
    repeated(tmp_path, 3)
    shared = inputs(tmp_path)
    rows = shared.dataset.held_out
    group = motion_fits.duplicate_group(shared)
    assert len(group) == len(rows) == 18 and len(group.unique()) == 6
    held_out = shared.read(rows)
    selected = []

    def select(self, particles):
        selected.append(particles)
        return self

    def stop(*given):
        raise InterruptedError

    monkeypatch.setattr(type(held_out), "select", select)
    monkeypatch.setattr(find_motion.coordinates, "find_subspace", stop)
    fit = MotionFit(shared.settings.parts, shared.dataset.scene, shared.options, 0, SILENT, "half1")
    search = Search(dimensions=1, nodes=3, bends=True)
    with pytest.raises(InterruptedError):
        find_motion.find_subspace(fit, search, held_out, held_out, group)
    copies = shared.dataset.particles.exclusive_groups()
    validation, test = (set(copies[rows[some]].tolist()) for some in selected[-2:])
    assert validation and test and not validation & test


def test_one_particle_cannot_end_fits_and_be_the_test(tmp_path):
    write(tmp_path, 40, 0.0, snr=1.0)
    star = tmp_path / "particles.star"
    text = star.read_text().splitlines()
    head = next(i for i, line in enumerate(text) if line.startswith("_rlnRandomSubset"))
    text[head] = "_rlnGroupName #" + text[head].split("#")[1]
    rows = [i for i, line in enumerate(text) if "@" in line]
    for number, i in enumerate(rows):
        text[i] = " ".join([*text[i].split()[:-1], f"group{number // 10}"])
    star.write_text("\n".join(text) + "\n")
    with pytest.raises(DataError, match="only one particle is held out, .* add --held-out"):
        motion_fits.duplicate_group(inputs(tmp_path, group_by="rlnGroupName"))
    outcome = instamap(
        "reconstruct",
        star,
        "-o",
        tmp_path / "out",
        "--group-by",
        "rlnGroupName",
        "--deform",
        "bending-field",
    )
    assert (
        "only one particle is held out" in outcome.err.splitlines()[-1]
        and outcome.code == 2
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--likelihood", "correlation"],
            "it needs Gaussian noise, likelihood 'correlation' is of another kind; choose gaussian",
        ),
        (["--stage", "steps=5"], "stages are not for it, which has its own; leave them out"),
    ],
)
def test_what_conformations_of_their_own_cannot_have_is_named(tmp_path, words, reason):
    write(tmp_path, 40, 0.0, snr=1.0)
    outcome = instamap(
        "reconstruct",
        tmp_path / "particles.star",
        "-o",
        tmp_path / "out",
        "--deform",
        "subspace",
        *words,
    )
    assert f"workflow 'motion': {reason};" in outcome.refusal


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-D", "latent=3"], "topology 'circle' is of one coordinate, .* but latent is 3; leave"),
        (["--objective", "images"], "topology 'circle' is for workflow 'motion'; leave it or"),
    ],
)
def test_a_circle_that_nobody_can_look_for_is_refused(tmp_path, words, reason):
    write(tmp_path, 40, 0.0, snr=1.0)
    star = tmp_path / "particles.star"
    circle = ("--deform", "bending-field", "-D", "topology=circle")
    outcome = instamap("reconstruct", star, "-o", tmp_path / "out", *circle, *words)
    assert re.search(reason, outcome.refusal) and not (tmp_path / "out").exists()
