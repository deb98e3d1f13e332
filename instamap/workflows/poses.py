"""A whole reconstruction that corrects poses: the map of each half, then its particles against that
map alone, round by round.
"""

import json
import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import pose_star
from instamap.data.particles import Particles
from instamap.errors import CompositionError
from instamap.fit import loop
from instamap.model import choose, compose
from instamap.plugin.options import describe, to_dict
from instamap.plugin.registry import default
from instamap.poses import correction
from instamap.poses.pose_prior import Prior
from instamap.poses.rounds import Round, Work
from instamap.workflows import map as map_workflow
from instamap.workflows import output
from instamap.workflows.prepare import Survey, survey
from instamap.workflows.record import Log, reporting, write_toml
from instamap.workflows.settings import Settings

CHANCE = 0.01  # probability, at most, that noise is taken for errors of poses
REFINED = "particles_refined.star"
READ = (
    "source",
    "bodies",
    "angle",
    "shift",
)  # options of the deformation that are taken into account, or refused for reasons of their own

Say = Callable[[str], None]
Watch = Callable[[str, loop.Look], None]
Count = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """result and data (without the evidence, which is large): of the fit with corrected poses.

    z "n 5": corrections of all particles. rounds: from the poses as given on.
    """

    result: map_workflow.Result
    data: map_workflow.Data
    z: Tensor
    rounds: list[Round]

    @property
    def corrected(self) -> bool:
        """Whether any pose was."""
        return bool((self.z != 0).any())

    @property
    def gain(self) -> float:
        """Of held-out particles by corrections and by the map that they made possible, in nats
        each.
        """
        return max(r.held_out for r in self.rounds) - self.rounds[0].given


def resolved(settings: Settings) -> Settings | None:
    """The settings with engine 'poses', where that is chosen or goes with the deformation; None
    where another engine does.
    """
    if settings.engine.name == "poses":
        return settings
    fits = settings.engine.name == "auto" and reason(settings) is None
    return replace(settings, engine=choose("engine", "poses", [])) if fits else None


def reason(settings: Settings) -> str | None:
    """Why poses cannot be corrected with these settings, or None if they can."""
    deformation = settings.parts["deformation"]
    likelihood = settings.parts["likelihood"]
    if deformation.name != "rigid":
        return f"it needs deformation 'rigid', not '{deformation.name}'; choose --deform rigid"
    if deformation.options.source != "table":
        return (
            f"it needs from=table, but from is '{deformation.options.source}'; choose -D"
            " from=table, or --engine images"
        )
    if deformation.options.bodies:
        return (
            "it corrects a particle as a whole, not its bodies; choose --engine images, or leave"
            " out bodies"
        )
    for spec in describe(type(deformation.options)):
        value = getattr(deformation.options, spec.field)
        if spec.field not in READ and value != spec.default:
            return (
                f"its closed form has no place for {spec.name}={value:g}; leave it out, or choose"
                " --engine images"
            )
    if not default().get("likelihood", likelihood.name).load().quadratic:
        return (
            f"it needs Gaussian noise, likelihood '{likelihood.name}' is not; choose gaussian or"
            " coloured"
        )
    for name in ("statistics", "stages"):
        if getattr(settings, name) is not None:
            return f"{name} are not for it; leave them out, or choose --engine images"
    return None


def check(settings: Settings) -> None:
    """Raises CompositionError for what cannot be taken into account."""
    why = reason(settings)
    if why:
        raise CompositionError(f"engine 'poses' cannot correct these poses: {why}")


def reconstruct_poses(
    settings: Settings,
    out: Path,
    *,
    force: bool = False,
    say: Say = lambda line: None,
    watch: Watch = lambda name, look: None,
    count: Count = lambda done, total: None,
    announce: Callable[[map_workflow.Data], None] = lambda data: None,
) -> Outcome:
    """Correct poses, fit every set, write maps, records and particles_refined.star to the folder
    `out`.

    Raises InstamapError before anything is written.
    """
    output.check(out, force)
    check(settings)
    plain = _plain(settings)
    known = survey(plain)
    data = map_workflow.surveyed(known, plain, count)
    announce(data)
    record = settings.record(settings.engine)
    with output.staged(out, force) as stage, Log(stage / "log.jsonl") as log:
        default().hook.instamap_run_started(settings=record)
        done = _rounds(settings, plain, known, data, say, reporting(log, watch))
        map_workflow.write(done.result, done.data, stage)
        pose_star.write(known.particles, done.z, stage / REFINED)
        (stage / "poses.json").write_text(
            json.dumps(_said(done), indent=1) + "\n", encoding="utf-8"
        )
        write_toml(stage / output.MARK, record)
    return done


def _plain(settings: Settings) -> Settings:
    """The settings of a map alone: one density, normal equations."""
    options = settings.engine.options
    normal = {k: v for k, v in to_dict(options).items() if k not in ("rounds", "newton")}
    parts = {
        **settings.parts,
        "deformation": choose("deformation", "identity", []),
        "forward": choose("forward", "slice", []),
    }
    return replace(settings, parts=parts, engine=choose("engine", "normal", normal))


def _rounds(
    settings: Settings,
    plain: Settings,
    known: Survey,
    data: map_workflow.Data,
    say: Say,
    look_at: Watch,
) -> Outcome:
    """Rounds as long as held-out particles get likelier, if corrections make them so at all; then
    back to the best one.
    """
    options, unit = settings.engine.options, settings.parts["deformation"].options
    prior = Prior(math.radians(unit.angle), unit.shift)
    z = torch.zeros(known.particles.count, 5, dtype=torch.float64)
    done: list[Outcome] = []
    for number in range(options.rounds + 1):
        if number:
            data = map_workflow.surveyed(
                replace(known, particles=_posed(known.particles, z)), plain
            )
        suffix = f" round {number}" if number else ""
        fits = map_workflow.fit_all(
            plain, data, lambda name, look, s=suffix: look_at(name + s, look)
        )
        result = map_workflow.finish(fits, data.scene, data.evidence)
        work = Work(known, compose(plain.parts, data.scene).likelihood, result, options.newton)
        own, seen = work.judge(z, prior)
        done.append(
            Outcome(
                result, replace(data, evidence={}), z, [*(done[-1].rounds if done else []), seen]
            )
        )
        say(_line(number, seen, known.particles))
        if number == options.rounds or _idle(done, len(known.held_out), options.tolerance):
            break
        z = work.correct(own, prior := seen.prior)
    return replace(max(done, key=lambda one: one.rounds[-1].held_out), rounds=done[-1].rounds)


def _idle(done: list[Outcome], count: int, tolerance: float) -> bool:
    """Whether corrections do not help: after the first map if its held-out particles gain no more
    by them than chance allows (where poses are right, exp(gain) has mean 1), then if the last ones
    gained no more than the share `tolerance`.
    """
    last = done[-1].rounds[-1]
    if len(done) == 1:
        return (last.held_out - last.given) * count <= math.log(1 / CHANCE)
    before = done[-2].rounds[-1].held_out
    return last.held_out - before <= tolerance * abs(before)


def _posed(particles: Particles, z: Tensor) -> Particles:
    """The particles with corrected poses."""
    moved = copy(particles)
    moved.views = correction.corrected(particles.views, z)
    return moved


def _line(number: int, seen: Round, particles: Particles) -> str:
    angle = math.degrees(seen.prior.angle) * math.sqrt(3)
    shift = seen.prior.shift * math.sqrt(2)
    finest = particles.box * particles.pixel_size / seen.shell
    return (
        f"round {number}: held-out {seen.held_out:+.4g} nats/particle,"
        f" {seen.held_out - seen.given:+.3g} of them by correcting poses; poses err by {angle:.2g}°"
        f" and {shift:.2g} Å rms, compared down to {finest:.3g} Å"
    )


def _said(done: Outcome) -> dict:
    """What poses.json says; all likelihoods in nats per held-out particle."""
    angle, shift = correction.rms(done.z)
    rounds = [
        {
            "angle": math.degrees(r.prior.angle),
            "shift": r.prior.shift,
            "shell": r.shell,
            "held_out": r.held_out,
            "given": r.given,
        }
        for r in done.rounds
    ]
    return {"rms_angle": angle, "rms_shift": shift, "corrected": done.corrected, "rounds": rounds}


def conclusion(done: Outcome, out: Path) -> list[str]:
    """What became of the poses, in lines for a person."""
    angle, shift = correction.rms(done.z)
    if not done.corrected:
        return [
            "poses: left as they were given, as held-out particles are no likelier with corrected"
            " ones than chance allows"
        ]
    gain = done.gain
    return [
        f"poses: corrected by {angle:.2g}° and {shift:.2g} Å rms, in {out / REFINED}; held-out"
        f" particles gain {gain:+.4g} nats each"
    ]
