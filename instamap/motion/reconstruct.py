"""A whole motion: from a STAR file to coordinates of all particles and two independent models that bend one density into every state."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.compose import choose, compose
from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import CompositionError
from instamap.fit import loop, output, reconstruct
from instamap.fit.gather import gather
from instamap.fit.normal import Normal
from instamap.fit.objective import Evidence
from instamap.fit.record import Log, write_toml
from instamap.fit.settings import Settings
from instamap.fit.stages import Stage
from instamap.fit.statistics import Statistics
from instamap.fit.survey import Survey, survey
from instamap.forward.ctf import ctf
from instamap.motion import bend, coordinates, infer
from instamap.motion.coarse import CUT, Coarse, rescaled
from instamap.motion.folder import Half, Motion
from instamap.motion.nodes import log_prob
from instamap.registry import default
from instamap.scene import Scene

LEAST = 24  # pixels of the box in which coordinates are found, if the images have as many
CHANCE = 0.01  # probability, at most, that noise is taken for motion

Say = Callable[[str], None]
Watch = Callable[[str, loop.Look], None]


@dataclass(frozen=True)
class Piece:
    """One independent fit. gain: what bending gives held-out particles over the rigid map, nats per particle, their state summed out.

    z "m L": own coordinates of its particles `rows`' units and, `judged`, of the held-out ones. map "D D D" and looks: of the last fit.
    """

    half: Half
    found: coordinates.Found
    gain: float
    z: Tensor
    judged: Tensor
    done: loop.Fit


@dataclass(frozen=True)
class Source:
    """What all fits share. unit "n": the particle that each image shows; held_out: rows that judge."""

    settings: Settings
    known: Survey
    coarse: Particles
    variance: Tensor
    unit: Tensor

    def of(self, latent: int) -> "Source":
        """With this many coordinates."""
        parts = self.settings.parts
        chosen = parts["deformation"]
        chosen = replace(chosen, options=replace(chosen.options, latent=latent))
        return replace(self, settings=replace(self.settings, parts={**parts, "deformation": chosen}))


def reconstruct_motion(settings: Settings, out: Path, *, force: bool = False, say: Say = lambda line: None,
                       watch: Watch = lambda name, look: None) -> Motion:  # fmt: skip
    """Fit each half on its own, relate their coordinates, write all to the folder `out`. Raises InstamapError before anything is written."""
    output.check(out, force)
    check(settings)
    source = _source(settings)
    say(f"coordinates     in {source.coarse.box} px of {source.coarse.pixel_size:.4g} Å")
    record = settings.record(settings.engine)
    with output.staged(out, force) as stage, Log(stage / "log.jsonl") as log:
        default().hook.instamap_run_started(settings=record)
        pieces: dict[str, Piece] = {}
        for number, name in enumerate(source.known.rows):

            def look_at(kind: str, look: loop.Look, name: str = name) -> None:
                log.write({"fit": name, "phase": kind, "step": look.step, "loss": look.loss, "held_out": look.held_out,
                           "seconds": round(look.seconds, 3)})  # fmt: skip
                watch(f"{name} {kind}", look)

            if pieces:  # the first decides how many coordinates there are
                source = source.of(next(iter(pieces.values())).z.shape[1])
            pieces[name] = _fit(source, name, settings.seed * 1000 + number, say, look_at)
        motion, summary = _related(source, pieces, record)
        result = _maps(source, pieces, motion)
        reconstruct.write(result, reconstruct.Data(source.known.particles, motion.scene, settings.engine, {}, True), stage)
        motion.save(stage)
        (stage / "motion.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        write_toml(stage / output.MARK, {**record, "deformation": {**record["deformation"], "latent": motion.latents.shape[1]}})
    return motion


def resolved(settings: Settings) -> Settings | None:
    """The settings with engine 'states', where that is chosen or goes with the deformation; None where another engine does."""
    if settings.engine.name == "states":
        return settings
    deformation = settings.parts["deformation"]
    bends = default().get("deformation", deformation.name).load().bends and getattr(deformation.options, "source", "") == "table"
    return replace(settings, engine=choose("engine", "states", [])) if settings.engine.name == "auto" and bends else None


def check(settings: Settings) -> None:
    """Raises CompositionError for what states cannot take into account."""
    for name, usual in (("symmetry", "C1"), ("weights", None), ("statistics", None), ("stages", None)):
        value = getattr(settings, name)
        if value != usual:
            raise CompositionError(f"{name} '{value}' is not for engine 'states'; leave it out, or choose --engine images")
    name = settings.parts["deformation"].name
    if not default().get("deformation", name).load().bends:
        raise CompositionError(f"engine 'states' needs a deformation that bends, deformation '{name}' does not; choose --deform bending-field")
    if not default().get("likelihood", settings.parts["likelihood"].name).load().quadratic:
        raise CompositionError(f"engine 'states' needs Gaussian noise, likelihood '{settings.parts['likelihood'].name}' is not; choose gaussian")


def _source(settings: Settings) -> Source:
    parts = settings.parts
    known = survey(replace(settings, parts={**parts, "deformation": choose("deformation", "identity", [])}))
    fine = known.particles
    box = max(min(LEAST, fine.box), 2 * round(fine.box * fine.pixel_size / settings.engine.options.coarse / 2))
    coarse = fine
    if box < fine.box:
        coarse = Particles.open(settings.particles, datadir=settings.datadir, preprocess=replace(settings.preprocess, box=box))
    variance = noise.estimate(coarse, seed=settings.seed, transfer=ctf)
    unit = fine.groups(settings.together) if settings.together else torch.arange(fine.count)
    return Source(settings, known, coarse, variance, unit)


def _fit(source: Source, name: str, seed: int, say: Say, watch: Watch) -> Piece:
    """Coordinates, then bending at low resolution, then at full resolution, from one set of images."""
    options, settings = source.settings.engine.options, source.settings
    rows, judge_rows = source.known.rows[name], source.known.held_out
    generator = torch.Generator().manual_seed(seed)
    read = lambda some: Coarse.read(source.coarse, some, source.variance, source.unit[some])
    all_images, judge = read(rows), read(judge_rows)
    sample = all_images.some(torch.randperm(all_images.count, generator=generator)[: coordinates.SAMPLE])
    scene = Scene(box=source.coarse.box, pixel_size=source.coarse.pixel_size, count=source.coarse.count,
                  premultiplied=source.coarse.premultiplied, mask=_coarse_mask(source), noise_variance=source.variance.float())  # fmt: skip
    latent = settings.parts["deformation"].options.latent
    found = coordinates.find(sample, judge, scene.mask, latent, options.nodes, options.dimensions, generator)
    nodes, tried = found.nodes, ", ".join(f"{n}: {gain:+.3g}" for n, gain in found.tried.items())
    say(f"{name}: {len(nodes.maps)} states; held-out gain over one map {tried} nats/particle (coordinates: gain)")
    parts = {**settings.parts, "deformation": replace(settings.parts["deformation"], options=replace(
        settings.parts["deformation"].options, latent=nodes.z.shape[1], source="table"))}  # fmt: skip
    z = nodes.z.float()
    share, judged = (torch.softmax(log_prob(images, nodes.maps), 1) for images in (all_images, judge))
    coarse_model = bend.begin(
        parts, bend.aim(scene, nodes.maps), options, _each(all_images, share), _each(judge, judged), z, seed, watch
    )  # fmt: skip
    maps = infer.states(coarse_model, z)
    _, share, _ = infer.posterior(all_images, maps, nodes.z)
    _, judged, bent = infer.posterior(judge, maps, nodes.z)
    gain = float(bent.mean() - log_prob(judge, _rigid(all_images, judge, parts, coarse_model.scene, seed)[None]).mean())
    say(f"{name}: bending gives held-out particles {gain:+.3g} nats/particle over the rigid map")
    if gain * judge.count < math.log(1 / CHANCE):
        say(f"{name}: no motion found: held-out particles are no likelier than chance allows; nothing is bent")
        share, judged, z, nodes = _still(share), _still(judged), torch.zeros_like(z[:1]), replace(nodes, z=torch.zeros_like(nodes.z[:1]))
        coarse_model = bend.made(parts, coarse_model.scene, seed)
        maps = maps[:1]
    fine_scene = replace(source.known.scene, mask=_mask_of(source))
    fine_scene = bend.aim(fine_scene, rescaled(maps, fine_scene.box).float())
    fitted, judges = (
        _statistics(source, some, images.unit, s, parts) for some, images, s in ((rows, all_images, share), (judge_rows, judge, judged))
    )
    model, objective, done = bend.sharpen(parts, fine_scene, options, fitted, judges, z, coarse_model, seed, watch)
    if len(z) == 1:
        own, judged_z = torch.zeros(len(share), z.shape[1]).double(), torch.zeros(len(judged), z.shape[1]).double()
    else:
        coarse_model.deformation.load_state_dict(model.deformation.state_dict())
        maps = infer.states(coarse_model, z)
        own, judged_z = (infer.posterior(images, maps, nodes.z)[0] for images in (all_images, judge))
    eye = torch.eye(z.shape[1])
    return Piece(Half(model.eval(), eye, torch.zeros(z.shape[1]), z), found, gain, own, judged_z, done)


def _still(share: Tensor) -> Tensor:
    """All particles in one state."""
    return torch.ones(len(share), 1, dtype=share.dtype)


def _mask_of(source: Source) -> Tensor | None:
    return source.known.scene.mask


def _coarse_mask(source: Source) -> Tensor | None:
    """The user's mask in the box of the coarse images."""
    window = _mask_of(source)
    return None if window is None else rescaled(window, source.coarse.box).clamp(0, 1).float()


def _each(images: Coarse, share: Tensor) -> list[Statistics]:
    return [images.statistics(weight) for weight in share.T]


def _rigid(images: Coarse, judge: Coarse, parts: dict, scene: Scene, seed: int) -> Tensor:
    """The map of all particles, fitted as the states are but without bending."""
    model, one = bend.made(parts, scene, seed), torch.ones
    evidence = Evidence(statistics=images.statistics(one(images.count).double()), held_out_statistics=judge.statistics(one(judge.count).double()))
    objective = Normal(Normal.Options(), model, evidence)
    return loop.fit(model, objective, (Stage(deformation=0.0),), generator=torch.Generator().manual_seed(seed)).map


def _statistics(source: Source, rows: Tensor, unit: Tensor, share: Tensor, parts: dict) -> list[Statistics]:
    """Of each state at full resolution, from the images `rows` "n" of the particles `unit` "n" with shares "m K"."""
    likelihood = compose({**parts, "deformation": choose("deformation", "identity", [])}, source.known.scene).likelihood
    found = []
    for weight in share.T:
        weights = torch.zeros(source.known.particles.count, dtype=torch.float64)
        weights[rows] = weight[unit]
        found.append(gather(source.known.particles, {"state": rows[weight[unit] > CUT]}, likelihood, weights=weights)["state"])
    return found


def _related(source: Source, pieces: dict[str, Piece], record: dict) -> tuple[Motion, dict]:
    """The motion in coordinates that both fits share, those of the first, and what is to be said of it."""
    first, *others = pieces.values()
    halves, agreement = [first.half], None
    for other in others:
        turn, offset, agreement = _relation(first.judged, other.judged)
        halves.append(replace(other.half, turn=turn, offset=offset))
    latents = torch.zeros(source.known.particles.count, first.z.shape[1], dtype=torch.float64)
    for half, (name, piece) in zip(halves, pieces.items(), strict=True):
        rows = source.known.rows[name]
        own = piece.z[source.unit[rows].unique(return_inverse=True)[1]]
        latents[rows] = half.shared(own.float()).double()
        half.model.deformation.table.data[rows] = own.float()
    shared = [half.shared(piece.judged.float()).double() for half, piece in zip(halves, pieces.values(), strict=True)]
    judges = source.known.held_out
    latents[judges] = torch.stack(shared).mean(0)[source.unit[judges].unique(return_inverse=True)[1]]
    summary = {"coordinates": first.z.shape[1], "agreement": agreement, "fits": {name: _said(piece) for name, piece in pieces.items()}}
    return Motion(halves, latents, record), summary


def _said(piece: Piece) -> dict:
    """What motion.json says of one fit; all gains in nats per held-out particle."""
    return {
        "states": len(piece.found.nodes.maps), "gain_by_subspace_dimensions": piece.found.subspace,
        "gain_of_states_by_coordinates": {str(n): gain for n, gain in piece.found.tried.items()}, "gain_of_bending": piece.gain,
        "motion_found": len(piece.half.nodes) > 1,
    }  # fmt: skip


def _relation(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, float]:
    """turn "L L" and offset "L" with two ≈ one @ turnᵀ + offset for coordinates "m L" of the same particles, and their correlation (R)."""
    size = one.shape[1]
    nothing = torch.eye(size), torch.zeros(size), 0.0
    if not one.std() > 0 or not two.std() > 0:
        return nothing
    if size == 1:
        r = float(torch.corrcoef(torch.stack([one[:, 0], two[:, 0]]))[0, 1])
        return torch.eye(1) * (1.0 if r >= 0 else -1.0), torch.zeros(1), abs(r)
    known = torch.cat([one, torch.ones(len(one), 1, dtype=one.dtype)], 1)
    solved = torch.linalg.lstsq(known, two).solution
    rest = (two - known @ solved).square().sum() / (two - two.mean(0)).square().sum()
    return solved[:-1].T.float().contiguous(), solved[-1].float(), float((1 - rest).clamp(min=0).sqrt())


def _maps(source: Source, pieces: dict[str, Piece], motion: Motion) -> reconstruct.Result:
    """Half maps and map of the state at the origin of the shared coordinates, which both fits bend into place."""
    middle = torch.zeros(motion.latents.shape[1])
    fits = {
        name: loop.Fit(half.state(middle), piece.done.looks, True) for half, (name, piece) in zip(motion.halves, pieces.items(), strict=True)
    }  # fmt: skip
    window = torch.stack([half.model.scene.mask for half in motion.halves]).amax(0)
    return reconstruct.finish(fits, replace(motion.scene, mask=window))


def conclusion(motion: Motion, out: Path) -> list[str]:
    """Where things are and what they are worth."""
    said = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    lines = []
    for name, fit in said["fits"].items():
        found = f"{fit['states']} states" if fit["motion_found"] else "no motion found: nothing is bent"
        lines.append(f"{name}: bending gives held-out particles {fit['gain_of_bending']:+.4g} nats over the rigid map; {found}")
    if said["agreement"] is not None:
        lines.append(f"halves: their coordinates of held-out particles correlate by {said['agreement']:.3f}")
    return [*lines, f"maps, coordinates (latents.npy) and records in {out}/: {', '.join(sorted(p.name for p in out.iterdir()))}"]
