"""Whether anything moves is told by test particles that share no image with those that a fit or a
choice has seen.
"""

import math

import pytest
import torch
from support.command import instamap
from support.swinging import write

from instamap.errors import DataError
from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.motion import find_motion
from instamap.motion.bend import MotionFit
from instamap.motion.find_motion import Candidate, CoarseMotion, Search
from instamap.motion.state_mixture import StateMixture
from instamap.progress import SILENT
from instamap.workflows import motion_fits
from instamap.workflows.choose import resolve
from instamap.workflows.motion_fits import Decision, MotionInputs
from instamap.workflows.settings import Settings


def coarse_motion(gains: dict[int, float], test_count: int = 100) -> CoarseMotion:
    mixture = StateMixture(torch.zeros(3, 2, 2, 2), torch.zeros(3, 1), 0.0)
    candidates = {n: Candidate(mixture, None, [], gain) for n, gain in gains.items()}
    return CoarseMotion(None, None, None, candidates, test_count)


def test_motion_needs_every_fit_and_more_than_chance():
    chance = math.log(1 / FALSE_POSITIVE_RATE) / 100  # nats a test particle, of 100
    enough = coarse_motion({1: 1.1 * chance})
    little = coarse_motion({1: 0.9 * chance})
    assert motion_fits.decide({"half1": enough, "half2": enough}).moving
    assert not motion_fits.decide({"half1": enough, "half2": little}).moving
    few = coarse_motion({1: 1.1 * chance}, test_count=90)
    assert not motion_fits.decide({"map": few}).moving, "fewer test particles must be surer"
    tries = {n: 1.1 * chance for n in (1, 2, 3)}  # the best of three exceeds chance more easily
    assert not motion_fits.decide({"map": coarse_motion(tries)}).moving


def test_coordinates_are_those_with_which_all_test_particles_are_likeliest():
    motions = {
        "half1": coarse_motion({1: 3.0, 2: 5.0, 3: 1.0}),
        "half2": coarse_motion({1: 4.0, 2: 1.0, 3: 2.0}),
    }
    assert motion_fits.decide(motions) == Decision(1, True)
    worse = {"map": coarse_motion({1: -3.0, 2: -2.0, 3: -1.0})}
    assert motion_fits.decide(worse) == Decision(3, False)


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
    search = Search(latents=(1,), dimensions=1, nodes=3, bends=True)
    with pytest.raises(InterruptedError):
        find_motion.find_motion(fit, search, held_out, held_out, group)
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
        (["--symmetry", "C2"], "symmetry 'C2' is not for it; leave it out"),
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
