"""A whole motion: from a STAR file to coordinates of all particles and two independent models that
bend one density into every state.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import CompositionError, DataError
from instamap.fit import loop
from instamap.fit.parallel import side_by_side
from instamap.fourier.ctf import ctf
from instamap.model import born, choose
from instamap.motion import assignment, bend, find_motion, posterior, weighted_maps
from instamap.motion.align_latents import related
from instamap.motion.find_motion import Explored
from instamap.motion.motion_model import Half, Motion
from instamap.plugin.registry import default
from instamap.scene import Scene
from instamap.statistics.particle_statistics import Coarse, fewer_pixels, rescaled
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import gather
from instamap.workflows import map as map_workflow
from instamap.workflows import output
from instamap.workflows.prepare import Survey, survey
from instamap.workflows.record import Log, reporting, write_toml
from instamap.workflows.settings import Settings

CHANCE = 0.01  # probability, at most, that noise is taken for motion

Say = Callable[[str], None]
Watch = Callable[[str, loop.Look], None]


@dataclass(frozen=True)
class Piece:
    """One independent fit. z "m L": own coordinates of its particles; judged "h L": of the held-out
    ones. done: the last fit.
    """

    half: Half
    z: Tensor
    judged: Tensor
    done: loop.Fit


@dataclass(frozen=True)
class Source:
    """What all fits share. unit "n": the particle that each image shows. coarse: the images with
    fewer pixels, in noise of `variance`.
    """

    settings: Settings
    known: Survey
    coarse: Particles
    variance: Tensor
    unit: Tensor


@dataclass(frozen=True)
class Verdict:
    """latent: coordinates. moving: whether witnesses of every fit are likelier by more than chance
    if particles move.
    """

    latent: int
    moving: bool


def reconstruct_motion(
    settings: Settings,
    out: Path,
    *,
    force: bool = False,
    say: Say = lambda line: None,
    watch: Watch = lambda name, look: None,
) -> Motion:
    """Fit each half on its own, relate their coordinates, write all to the folder `out`. Raises
    InstamapError first, or writes.

    The halves share two things, neither of which is a map: how many coordinates there are and
    whether anything moves.
    """
    output.check(out, force)
    check(settings)
    source = _source(settings)
    say(f"coordinates     in {source.coarse.box} px of {source.coarse.pixel_size:.4g} Å")
    record = settings.record(settings.engine)
    with output.staged(out, force) as stage, Log(stage / "log.jsonl") as log:
        default().hook.instamap_run_started(settings=record)
        report = reporting(log, watch)
        names = list(source.known.rows)
        seen = side_by_side(
            names, lambda name, guard: _explored(source, name, guard(say), guard(report))
        )
        verdict = decided(seen)
        if not verdict.moving:
            say(
                "no motion found: held-out particles are no likelier than chance allows; all stay"
                " in one state"
            )
        pieces = side_by_side(
            names, lambda name, guard: _fitted(source, name, seen[name], verdict, guard(report))
        )
        motion, agreement = _related(source, pieces, record)
        map_workflow.write(
            _result(pieces, motion),
            map_workflow.Data(source.known.particles, motion.scene, settings.engine, {}, True),
            stage,
        )
        motion.save(stage)
        (stage / "motion.json").write_text(
            json.dumps(_said(seen, verdict, agreement), indent=1) + "\n", encoding="utf-8"
        )
        write_toml(
            stage / output.MARK,
            {**record, "deformation": {**record["deformation"], "latent": verdict.latent}},
        )
    return motion


def decided(seen: dict[str, Explored]) -> Verdict:
    """The number of coordinates with which witnesses are likeliest, and whether each fit's are so
    by more than chance.
    """
    trials = [one.trials for one in seen.values()]
    latent = max(trials[0], key=lambda n: sum(some[n].gain for some in trials))
    chance = math.log(len(trials[0]) / CHANCE)
    return Verdict(
        latent, all(one.trials[latent].gain * one.witnesses > chance for one in seen.values())
    )


def resolved(settings: Settings) -> Settings | None:
    """The settings with engine 'states', where that is chosen or goes with the deformation; None
    where another engine does.
    """
    if settings.engine.name == "states":
        return settings
    deformation = settings.parts["deformation"]
    states = default().get("deformation", deformation.name).load().states
    gaussian = default().get("likelihood", settings.parts["likelihood"].name).load().quadratic
    able = states == "weigh" or (
        states
        and getattr(deformation.options, "source", "table") == "table"
        and gaussian
        and settings.stages is None
    )  # maps of their own can be made in no other way, and `check` says what does not fit
    return (
        replace(settings, engine=choose("engine", "states", []))
        if settings.engine.name == "auto" and able
        else None
    )


def check(settings: Settings) -> None:
    """Raises CompositionError for what states cannot take into account."""
    name = {kind: f"{kind} '{settings.parts[kind].name}'" for kind in ("deformation", "likelihood")}
    part = {kind: default().get(kind, settings.parts[kind].name).load() for kind in name}
    if not part["deformation"].states:
        raise CompositionError(
            f"engine 'states' needs states, {name['deformation']} has none; choose bending-field or"
            " subspace"
        )
    other = ", or choose --engine images" if part["deformation"].states == "bend" else ""
    for option, usual in (("symmetry", "C1"), ("weights", None), ("statistics", None)):
        value = getattr(settings, option)
        if value != usual:
            raise CompositionError(f"{option} '{value}' is not for engine 'states'; leave it out")
    if settings.stages is not None:
        raise CompositionError(
            f"stages are not for engine 'states', which has its own; leave them out{other}"
        )
    if not part["likelihood"].quadratic:
        raise CompositionError(
            f"engine 'states' needs Gaussian noise, {name['likelihood']} is of another kind; choose"
            f" gaussian{other}"
        )


def _source(settings: Settings) -> Source:
    parts = settings.parts
    known = survey(
        replace(settings, parts={**parts, "deformation": choose("deformation", "identity", [])})
    )
    fine = known.particles
    coarse = fewer_pixels(settings, fine, settings.engine.options.coarse)
    variance = noise.estimate(coarse, seed=settings.seed, transfer=ctf)
    unit = (
        fine.groups(settings.together) if settings.together else torch.arange(fine.count)
    )  # copies of an image may move on their own
    return Source(settings, known, coarse, variance, unit)


def _read(source: Source, rows: Tensor) -> Coarse:
    return Coarse.read(source.coarse, rows, source.variance, source.unit[rows])


def _explored(source: Source, name: str, say: Say, report: Watch) -> Explored:
    """Coordinates and bending of one set at low resolution."""
    settings = source.settings
    box = source.coarse
    known = source.known
    window = (
        None
        if known.scene.mask is None
        else rescaled(known.scene.mask, box.box).clamp(0, 1).float()
    )
    scene = Scene(
        box=box.box,
        pixel_size=box.pixel_size,
        count=box.count,
        premultiplied=box.premultiplied,
        mask=window,
        noise_variance=source.variance.float(),
    )
    images = _read(source, known.rows[name])
    held_out = _read(source, known.held_out)

    def watch(kind, look):
        return report(f"{name} {kind}", look)

    found = find_motion.explore(
        images,
        held_out,
        _kin(source),
        scene,
        settings.parts,
        settings.engine.options,
        _seed(source, name),
        watch,
    )
    for n, trial in found.trials.items():
        how = "bent density gives" if trial.bent else "states give"
        say(
            f"{name}: {len(trial.nodes.maps)} states in {n} coordinates: {how} {trial.gain:+.3g}"
            " nats/particle over one rigid map"
        )
    return found


def _kin(source: Source) -> Tensor:
    """A number "h" for each held-out particle that it shares with those that show copies of an
    image. Raises DataError if there is one.
    """
    rows = source.known.held_out
    particle = source.unit[rows].unique(return_inverse=True)[1]
    copies = source.known.particles.units(source.settings.together)[rows]
    kin = copies.new_zeros(int(particle.max()) + 1).scatter_(0, particle, copies)
    if len(kin.unique()) < 2:
        raise DataError(
            "only one particle is held out, and motion needs two that are not fitted; add"
            " --held-out with a larger share"
        )
    return kin


def _seed(source: Source, name: str) -> int:
    return source.settings.seed * 1000 + list(source.known.rows).index(name)


def _fitted(source: Source, name: str, seen: Explored, verdict: Verdict, report: Watch) -> Piece:
    """States at full resolution, and where particles are in them."""
    trial = seen.trials[verdict.latent]
    options = source.settings.engine.options
    seed = _seed(source, name)
    parts = find_motion.of(source.settings.parts, verdict.latent)

    def watch(kind, look):
        return report(f"{name} {kind}", look)

    placed = assignment.still(seen, verdict.latent)
    if verdict.moving:
        placed = assignment.likelier(
            [assignment.by(seen, maps, trial.nodes.z) for maps in trial.maps]
        )
    scene = bend.aim(source.known.scene, rescaled(placed.maps, source.known.scene.box).float())
    fitted = _statistics(source, source.known.rows[name], seen.images.unit, placed.share, parts)
    judges = _statistics(
        source, source.known.held_out, seen.held_out.unit, placed.judged_share, parts
    )
    z = placed.nodes.float()
    fields = None
    if trial.bent:
        model, done = bend.sharpen(
            parts,
            scene,
            options,
            fitted,
            judges,
            z,
            trial.bent if verdict.moving else None,
            seed,
            watch,
        )
        if verdict.moving:
            placed = assignment.likelier(
                [
                    placed,
                    assignment.by(
                        seen, rescaled(posterior.states(model, z), seen.images.box), placed.nodes
                    ),
                ]
            )
    else:
        model, fields, done = weighted_maps.fit(
            parts, scene, options, fitted, judges, z, seed, watch
        )
    half = Half(
        model.eval(),
        torch.eye(verdict.latent),
        torch.zeros(verdict.latent),
        placed.nodes.float(),
        placed.maps,
        fields,
    )
    return Piece(half, placed.z, placed.judged, done)


def _statistics(
    source: Source, rows: Tensor, unit: Tensor, share: Tensor, parts: dict
) -> list[Statistics]:
    """Of each state at full resolution, from the images `rows` "n" of the particles `unit` "n" with
    shares "m K".
    """
    likelihood = born(
        {**parts, "deformation": choose("deformation", "identity", [])}, source.known.scene, 0
    ).likelihood
    found = []
    for weight in share.T:
        weights = torch.zeros(source.known.particles.count, dtype=torch.float64)
        weights[rows] = weight[unit]
        found.append(
            gather(
                source.known.particles,
                {"state": rows[weight[unit] > 0]},
                likelihood,
                weights=weights,
            )["state"]
        )
    return found


def _related(source: Source, pieces: dict[str, Piece], record: dict) -> tuple[Motion, float | None]:
    """The motion in coordinates that both fits share, those of the first, and how far held-out
    particles' coordinates agree.
    """
    first, *others = pieces.values()
    halves = [first.half]
    agreement = None
    for other in others:
        turn, offset, agreement = related(first.judged, other.judged)
        halves.append(replace(other.half, turn=turn, offset=offset))
    latents = torch.zeros(source.known.particles.count, first.z.shape[1], dtype=torch.float64)
    for half, (name, piece) in zip(halves, pieces.items(), strict=True):
        rows = source.known.rows[name]
        own = piece.z[source.unit[rows].unique(return_inverse=True)[1]]
        latents[rows] = half.shared(own.float()).double()
        if hasattr(half.model.deformation, "table"):
            half.model.deformation.table.data[rows] = own.float()
    shared = [
        half.shared(piece.judged.float()).double()
        for half, piece in zip(halves, pieces.values(), strict=True)
    ]
    judges = source.known.held_out
    latents[judges] = torch.stack(shared).mean(0)[
        source.unit[judges].unique(return_inverse=True)[1]
    ]
    return Motion(halves, latents, record), agreement


def _said(seen: dict[str, Explored], verdict: Verdict, agreement: float | None) -> dict:
    """What motion.json says; all gains in nats per held-out particle."""
    fits = {
        name: {
            "states": len(one.trials[verdict.latent].nodes.maps),
            "gain_by_subspace_dimensions": one.found.gain,
            "gain_over_rigid_by_coordinates": {
                str(n): trial.gain for n, trial in one.trials.items()
            },
            "gain_over_rigid": one.trials[verdict.latent].gain,
            "witnesses": one.witnesses,
        }
        for name, one in seen.items()
    }
    return {
        "coordinates": verdict.latent,
        "motion_found": verdict.moving,
        "agreement": agreement,
        "fits": fits,
    }


def _result(pieces: dict[str, Piece], motion: Motion) -> map_workflow.Result:
    """Half maps and map of the state at the origin of the shared coordinates, which both fits bend
    into place.
    """
    middle = torch.zeros(motion.latents.shape[1])
    both = zip(motion.halves, pieces.items(), strict=True)
    fits = {
        name: loop.Fit(half.state(middle), piece.done.looks, True) for half, (name, piece) in both
    }
    window = torch.stack([half.model.scene.mask for half in motion.halves]).amax(0)
    return map_workflow.finish(fits, replace(motion.scene, mask=window))


def conclusion(motion: Motion, out: Path) -> list[str]:
    """Where things are and what they are worth."""
    said = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    how = "states give" if motion.halves[0].fields is not None else "bending gives"
    gains = {name: fit["gain_over_rigid"] for name, fit in said["fits"].items()}
    lines = [
        f"{name}: {how} held-out particles {gain:+.4g} nats over one rigid map"
        for name, gain in gains.items()
    ]
    if not said["motion_found"]:
        lines.append(
            "no motion found: that is no more than chance allows, of one fit at least; nothing"
            " moves in what was written"
        )
    elif said["agreement"] is not None:
        lines.append(
            f"halves: their coordinates of held-out particles correlate by {said['agreement']:.3f}"
        )
    return [
        *lines,
        (
            f"maps, coordinates (latents.npy) and records in {out}/:"
            f" {', '.join(sorted(p.name for p in out.iterdir()))}"
        ),
    ]
