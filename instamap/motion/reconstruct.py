"""A whole motion: from a STAR file to coordinates of all particles and two independent models that bend one density into every state."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.compose import Model, choose, compose
from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import CompositionError
from instamap.fit import loop, output, reconstruct
from instamap.fit.gather import gather
from instamap.fit.record import Log, write_toml
from instamap.fit.settings import Settings
from instamap.fit.statistics import Statistics
from instamap.fit.survey import Survey, survey
from instamap.forward.ctf import ctf
from instamap.motion import bend, coordinates, infer, weigh
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
    """Fit each half on its own, relate their coordinates, write all to the folder `out`. Raises InstamapError first, or writes."""
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
    able = default().get("deformation", deformation.name).load().states and getattr(deformation.options, "source", "table") == "table"
    return replace(settings, engine=choose("engine", "states", [])) if settings.engine.name == "auto" and able else None


def check(settings: Settings) -> None:
    """Raises CompositionError for what states cannot take into account."""
    for name, usual in (("symmetry", "C1"), ("weights", None), ("statistics", None), ("stages", None)):
        value = getattr(settings, name)
        if value != usual:
            raise CompositionError(f"{name} '{value}' is not for engine 'states'; leave it out, or choose --engine images")
    name = {kind: f"{kind} '{settings.parts[kind].name}'" for kind in ("deformation", "likelihood")}
    part = {kind: default().get(kind, settings.parts[kind].name).load() for kind in name}
    if not part["deformation"].states:
        raise CompositionError(f"engine 'states' needs states, {name['deformation']} has none; choose bending-field or subspace")
    if not part["likelihood"].quadratic:
        raise CompositionError(f"engine 'states' needs Gaussian noise, {name['likelihood']} is of another kind; choose gaussian")


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
    rows, judge_rows = source.known.rows[name], source.known.held_out
    images, judge = (Coarse.read(source.coarse, some, source.variance, source.unit[some]) for some in (rows, judge_rows))
    generator = torch.Generator().manual_seed(seed)
    sample = images.some(torch.randperm(images.count, generator=generator)[: coordinates.SAMPLE])
    options, latent = source.settings.engine.options, source.settings.parts["deformation"].options.latent
    found = coordinates.find(sample, judge, _coarse_mask(source), latent, options.nodes, options.dimensions, generator)
    tried = ", ".join(f"{n}: {gain:+.3g}" for n, gain in found.tried.items())
    say(f"{name}: {len(found.nodes.maps)} states; held-out gain over one map {tried} nats/particle (coordinates: gain)")
    parts = source.of(found.nodes.z.shape[1]).settings.parts
    bends = default().get("deformation", parts["deformation"].name).load().states == "bend"
    bent, gain = _bent(source, parts, images, judge, found, seed, watch) if bends else (None, found.nodes.held_out)
    say(f"{name}: {'bending gives' if bends else 'states give'} held-out particles {gain:+.3g} nats/particle over the rigid map")
    placed = _placed(images, judge, found, bent)
    if gain * judge.count < math.log(1 / CHANCE):
        say(f"{name}: no motion found: held-out particles are no likelier than chance allows; all stay in one state")
        placed = _still(placed, found)
        bent = bent and bend.made(parts, bent.scene, seed)
    z = placed.nodes.float()
    scene = bend.aim(source.known.scene, rescaled(placed.maps, source.known.scene.box).float())
    fitted = _statistics(source, rows, images.unit, placed.share, parts)
    judges = _statistics(source, judge_rows, judge.unit, placed.judged_share, parts)
    if bends:
        model, done = bend.sharpen(parts, scene, options, fitted, judges, z, bent, seed, watch)
        fields = None
    else:
        model, fields, done = weigh.fit(parts, scene, options, fitted, judges, z, seed, watch)
    half = Half(model.eval(), torch.eye(z.shape[1]), torch.zeros(z.shape[1]), z, placed.maps, fields)
    return Piece(half, found, gain, placed.z, placed.judged, done)


def _bent(source: Source, parts: dict, images: Coarse, judge: Coarse, found: coordinates.Found, seed: int,
          watch: Watch) -> tuple[Model, float]:  # fmt: skip
    """The model at low resolution, and its gain over a rigid one."""
    nodes, box = found.nodes, source.coarse
    scene = Scene(box=box.box, pixel_size=box.pixel_size, count=box.count, premultiplied=box.premultiplied, mask=_coarse_mask(source),
                  noise_variance=source.variance.float())  # fmt: skip
    scene = bend.aim(scene, nodes.maps)
    fitted, judges = ([each.statistics(w) for w in torch.softmax(log_prob(each, nodes.maps), 1).T] for each in (images, judge))
    z = nodes.z.float()
    model = bend.begin(parts, scene, source.settings.engine.options, fitted, judges, z, seed, watch)
    rigid = bend.rigid(parts, scene, sum(fitted[1:], start=fitted[0]), sum(judges[1:], start=judges[0]), seed)
    gain = infer.posterior(judge, infer.states(model, z), nodes.z)[2].mean() - log_prob(judge, rigid[None]).mean()
    return model, float(gain)


@dataclass(frozen=True)
class Placed:
    """Where particles are: own coordinates z "m L" and shares "m K", those of held-out ones, by maps "K N N N" of states at nodes "K L"."""

    z: Tensor
    share: Tensor
    judged: Tensor
    judged_share: Tensor
    maps: Tensor
    nodes: Tensor


def _placed(images: Coarse, judge: Coarse, found: coordinates.Found, bent: Model | None) -> Placed:
    """By the bent density or the free maps of states, whichever makes held-out particles likelier."""
    nodes = found.nodes
    choices = [nodes.maps, *([infer.states(bent, nodes.z.float())] if bent else [])]
    judged = [infer.posterior(judge, maps, nodes.z) for maps in choices]
    best = max(range(len(choices)), key=lambda i: float(judged[i][2].mean()))
    z, share, _ = infer.posterior(images, choices[best], nodes.z)
    return Placed(z, share, judged[best][0], judged[best][1], choices[best], nodes.z)


def _still(placed: Placed, found: coordinates.Found) -> Placed:
    """All particles in one state."""
    one = lambda share: torch.ones(len(share), 1, dtype=share.dtype)
    none, share, judged = torch.zeros_like, one(placed.share), one(placed.judged_share)
    return Placed(none(placed.z), share, none(placed.judged), judged, found.mean[None], none(placed.nodes[:1]))


def _coarse_mask(source: Source) -> Tensor | None:
    """The user's mask in the box of the coarse images."""
    window = source.known.scene.mask
    return None if window is None else rescaled(window, source.coarse.box).clamp(0, 1).float()


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
        if hasattr(half.model.deformation, "table"):
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


def _relation(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """turn "L L" and offset "L" with two ≈ one @ turnᵀ + offset for coordinates "m L" of the same particles, and their correlation (R)."""
    size = one.shape[1]
    nothing = torch.eye(size), torch.zeros(size), None
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
    both = zip(motion.halves, pieces.items(), strict=True)
    fits = {name: loop.Fit(half.state(middle), piece.done.looks, True) for half, (name, piece) in both}
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
