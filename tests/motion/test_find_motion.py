"""Who says whether anything moves: witnesses that share no image with those that a fit or a choice
has looked at.
"""

import math

import pytest
import torch
from support.command import instamap
from support.swinging import write

from instamap.cli import summary
from instamap.errors import DataError
from instamap.motion import find_motion
from instamap.motion.find_motion import Explored, Trial
from instamap.motion.state_mixture import Nodes
from instamap.workflows import motion as motion_workflow


def explored(gains: dict[int, float], witnesses: int = 100) -> Explored:
    nodes = Nodes(torch.zeros(3, 2, 2, 2), torch.zeros(3, 1), 0.0)
    return Explored(
        None, None, None, {n: Trial(nodes, None, [], gain) for n, gain in gains.items()}, witnesses
    )


def test_motion_needs_every_fit_and_more_than_chance():
    chance = math.log(1 / motion_workflow.CHANCE) / 100  # nats a witness, of 100
    enough = explored({1: 1.1 * chance})
    little = explored({1: 0.9 * chance})
    assert motion_workflow.decided({"half1": enough, "half2": enough}).moving
    assert not motion_workflow.decided({"half1": enough, "half2": little}).moving
    assert not motion_workflow.decided({"map": explored({1: 1.1 * chance}, witnesses=90)}).moving, (
        "fewer witnesses must be surer"
    )
    tries = {n: 1.1 * chance for n in (1, 2, 3)}  # the best of three exceeds chance more easily
    assert not motion_workflow.decided({"map": explored(tries)}).moving


def test_coordinates_are_those_with_which_all_witnesses_are_likeliest():
    seen = {
        "half1": explored({1: 3.0, 2: 5.0, 3: 1.0}),
        "half2": explored({1: 4.0, 2: 1.0, 3: 2.0}),
    }
    assert motion_workflow.decided(seen) == motion_workflow.Verdict(1, True)
    assert motion_workflow.decided(
        {"map": explored({1: -3.0, 2: -2.0, 3: -1.0})}
    ) == motion_workflow.Verdict(3, False)


def settings(folder, **plain):
    return motion_workflow.resolved(
        summary.settings(
            {},
            {"particles": folder / "particles.star", **plain},
            {"deformation": "bending-field"},
            {},
        )
    )


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
    """Judges and witnesses share no image, though the copies may move on their own, and copies
    count once.
    """
    write(tmp_path, 120, 0.0, snr=1.0)
    repeated(tmp_path, 3)
    source = motion_workflow._source(settings(tmp_path))
    kin = motion_workflow._kin(source)
    assert len(kin) == len(source.known.held_out) == 18 and len(kin.unique()) == 6
    held_out = motion_workflow._read(source, source.known.held_out)
    seen = []
    monkeypatch.setattr(type(held_out), "some", lambda self, units: seen.append(units) or self)
    monkeypatch.setattr(
        find_motion.coordinates, "find", lambda *given: (_ for _ in ()).throw(InterruptedError)
    )
    with pytest.raises(InterruptedError):
        given = (
            source.known.scene,
            source.settings.parts,
            source.settings.engine.options,
            0,
            lambda *look: None,
        )
        find_motion.explore(held_out, held_out, kin, *given)
    judges, witnesses = (
        set(source.known.particles.exclusive_groups()[source.known.held_out[some]].tolist())
        for some in seen[-2:]
    )
    assert judges and witnesses and not judges & witnesses


def test_one_particle_cannot_judge_and_be_a_witness(tmp_path):
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
        motion_workflow._kin(motion_workflow._source(settings(tmp_path, together="rlnGroupName")))
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
    "words, said",
    [
        (
            ["--likelihood", "correlation"],
            (
                "engine 'states' needs Gaussian noise, likelihood 'correlation' is of another kind;"
                " choose gaussian"
            ),
        ),
        (
            ["--stage", "steps=5"],
            "stages are not for engine 'states', which has its own; leave them out",
        ),
        (["--symmetry", "C2"], "symmetry 'C2' is not for engine 'states'; leave it out"),
    ],
)
def test_what_states_of_their_own_cannot_have_is_named(tmp_path, words, said):
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
    assert outcome.refusal == f"error: {said}"
