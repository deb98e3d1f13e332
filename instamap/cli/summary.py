"""Carries out a reconstruction for a person: settings from options and run.toml, what was chosen,
progress, where things are.
"""

from dataclasses import replace
from pathlib import Path

import typer

from instamap import model
from instamap.cli.progress import Stages
from instamap.data.preprocess import Preprocess
from instamap.errors import DataError, OptionError
from instamap.fit.stages import Stage
from instamap.geometry import compiled
from instamap.plugin.component import KINDS
from instamap.plugin.options import from_dict, parse, to_dict
from instamap.plugin.registry import default
from instamap.workflows import motion, per_particle, poses
from instamap.workflows.map import Data, Result, reconstruct
from instamap.workflows.record import read_toml
from instamap.workflows.settings import AUTO, Settings

PLAIN = {
    "particles": Path,
    "datadir": Path,
    "mask": Path,
    "halves": bool,
    "together": str,
    "held_out": float,
    "seed": int,
    "symmetry": str,
    "weights": str,
    "statistics": Path,
}
PREPROCESS = {"crop": int, "box": int, "normalise": bool, "background": float}
KNOWN = {**PLAIN, "instamap": str, "preprocess": dict, **dict.fromkeys(KINDS, dict), "stage": list}
RANGES = {"held_out": (0.001, 0.9), "seed": (0, 2**31 - 1)}


def earlier(config: Path | None) -> dict:
    """What a run.toml says; nothing without one. Raises DataError or OptionError."""
    return _checked(read_toml(config), config) if config else {}


def settings(
    before: dict, plain: dict, names: dict[str, str | None], items: dict[str, list[str]]
) -> Settings:
    """Settings as an earlier run's, if any, over which the options given on the command line (those
    not None) win.
    """
    given = {
        **{k: before[k] for k in PLAIN if k in before},
        **{k: v for k, v in plain.items() if v is not None},
    }
    if "particles" not in given:
        raise DataError(
            "no particles: give a STAR file, or --config with the run.toml of an earlier run"
        )
    done = {**before.get("preprocess", {}), **{k: given.pop(k) for k in PREPROCESS if k in given}}
    usual = dict(model.DEFAULTS)
    choices = {}
    for kind in model.DEFAULTS:
        if kind == "forward":  # the deformation comes before it
            usual[kind] = model.usual_forward(choices["deformation"].name)
        choices[kind] = _choice(
            kind, usual[kind], names.get(kind), items.get(kind) or [], dict(before.get(kind, {}))
        )
    values = {k: PLAIN[k](v) for k, v in given.items()}
    for key, (low, high) in RANGES.items():
        if key in values and not low <= values[key] <= high:
            raise OptionError(f"{key} is {values[key]}; it must be from {low} to {high}")
    stages = _stages(items.get("stage") or [], before.get("stage", []))
    chosen = Settings(**values, preprocess=Preprocess(**done), parts=choices, stages=stages)
    return replace(
        chosen,
        engine=_engine(
            chosen, names.get("engine"), items.get("engine") or [], dict(before.get("engine", {}))
        ),
    )


def _engine(chosen: Settings, name: str | None, items: list[str], before: dict) -> model.Choice:
    """The engine; where none is named, that which the deformation brings along, or auto, which has
    no options.
    """
    moving = motion.resolved(chosen) or poses.resolved(chosen)
    usual = moving.engine.name if moving else AUTO.name
    if (name or before.get("name", AUTO.name)) != AUTO.name:
        return _choice("engine", usual, name, items, before)
    if usual == AUTO.name and items:
        raise OptionError(
            f"option '{items[0]}' is for one engine, but engine is 'auto'; add --engine images or"
            " --engine normal"
        )
    return model.choose("engine", usual, items) if items else AUTO


def _stages(items: list[str], before: list[dict]) -> tuple[Stage, ...] | None:
    """Those of the command line, each "key=value key=value", else those of run.toml; None where
    neither has any.
    """
    given = [parse(Stage, text.split()) for text in items] or [
        from_dict(Stage, table) for table in before
    ]
    return tuple(given) or None


def _checked(before: dict, config: Path, known: dict[str, type] = KNOWN) -> dict:
    for key, value in before.items():
        kind = {Path: str, float: (int, float)}.get(known.get(key), known.get(key))
        if kind is None:
            raise OptionError(f"'{key}' in '{config}' is unknown; choose {', '.join(known)}")
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise OptionError(
                f"'{key}' in '{config}' is {value!r}; it must be"
                f" {'a table' if kind is dict else known[key].__name__}"
            )
        if kind is list and not all(isinstance(table, dict) for table in value):
            raise OptionError(
                f"'{key}' in '{config}' is {value!r}; it must be tables, each headed [[{key}]]"
            )
        if key == "preprocess":
            _checked(value, config, PREPROCESS)
        elif kind is dict and not isinstance(value.get("name"), str):
            raise OptionError(
                f"table '{key}' in '{config}' has no name of a part; write name = \"...\" into it"
            )
    return before


def _choice(
    kind: str, usual: str, name: str | None, items: list[str], before: dict
) -> model.Choice:
    """The part named on the command line, else in run.toml (whose options are then the defaults),
    else the usual one.
    """
    earlier = before.pop("name", None)
    name = name or earlier or usual
    options = default().get(kind, name).load().Options
    if name != earlier or not before:
        return model.choose(kind, name, items)
    given = to_dict(parse(options, items))
    keys = {item.partition("=")[0] for item in items}
    return model.choose(kind, name, {**before, **{key: given[key] for key in keys}})


def run(chosen: Settings, out: Path, force: bool) -> None:
    """Reconstruct, with progress on standard error and the outcome on standard output."""
    moving = motion.resolved(chosen)
    if moving:
        _move(moving, out, force, chosen.engine.name == AUTO.name)
        return
    posed = poses.resolved(chosen)
    seen: list[Data] = []
    with Stages() as stages:

        def announce(data: Data) -> None:
            seen.append(data)
            for line in introduction(
                chosen, data if posed is None else replace(data, engine=posed.engine)
            ):
                stages.say(line)

        def watch(name, look):
            return stages.look(name, look, seen[0].engine.options.steps)

        told = {"force": force, "watch": watch, "count": stages.read, "announce": announce}
        done = poses.reconstruct_poses(posed, out, say=stages.say, **told) if posed else None
        result = (
            done.result if done else reconstruct(chosen, out, learned=per_particle.write, **told)
        )
    for line in [*(poses.conclusion(done, out) if done else []), *conclusion(result, seen[0], out)]:
        typer.echo(line)


def _move(chosen: Settings, out: Path, force: bool, auto: bool) -> None:
    """As `run`, for particles that move."""
    motion.check(chosen)
    with Stages() as stages:
        for line in _parts(chosen, chosen.engine, auto):
            stages.say(line)

        def watch(name, look):
            return stages.look(name, look, chosen.engine.options.steps)

        found = motion.reconstruct_motion(chosen, out, force=force, say=stages.say, watch=watch)
    for line in motion.conclusion(found, out):
        typer.echo(line)


def introduction(chosen: Settings, data: Data) -> list[str]:
    """What is about to happen, in lines for a person."""
    scene = data.scene
    particles = data.particles
    sets = ", ".join(f"{name} {one.count}" for name, one in data.evidence.items())
    kind = "premultiplied by the CTF" if scene.premultiplied else "with contrast transfer"
    held_out = next(iter(data.evidence.values())).held_out_count
    lines = [
        (
            f"particles       {chosen.particles}: {scene.count} images of {scene.box} px at"
            f" {scene.pixel_size:g} Å, {kind}"
        ),
        f"sets            {sets}, held out {held_out}",
    ]
    special = {
        name: getattr(chosen, name) for name in ("preprocess", "symmetry", "weights", "statistics")
    }
    lines += [f"{name:15} {value}" for name, value in special.items() if value and value != "C1"]
    if particles and particles.ignored:
        lines.append(f"not modelled    {', '.join(particles.ignored)}")
    share = float((scene.mask > 0).float().mean())
    lines.append(
        f"mask            {chosen.mask or 'found in a first map, written to mask.mrc'}: {share:.0%}"
        " of the box"
    )
    lines += _parts(chosen, data.engine, chosen.engine.name == AUTO.name)
    for number, stage in enumerate(chosen.stages or (), 1):
        changed = " ".join(
            f"{k}={v}" for k, v in to_dict(stage).items() if v != to_dict(Stage())[k]
        )
        lines.append(f"{f'stage {number}':15} {changed or 'all parts learn'}")
    return lines


def _parts(chosen: Settings, engine: model.Choice, auto: bool) -> list[str]:
    """What slows them down, if anything, then the parts and the engine, with their options."""
    lines = [note] if (note := compiled.note()) else []
    for part, choice in {**chosen.parts, "engine": engine}.items():
        options = " ".join(f"{k}={v}" for k, v in to_dict(choice.options).items())
        if part == "forward" and engine.name != "images":
            lines.append(
                f"{part:15} none: engine {engine.name} has exact Fourier slices; {choice.name} and"
                " its options play no part"
            )
        else:
            lines.append(
                f"{part:15} {choice.name}{' (auto)' if part == 'engine' and auto else ''} "
                f" {options}".rstrip()
            )
    return lines


def conclusion(result: Result, data: Data, out: Path) -> list[str]:
    """Where things are and what they are worth."""
    lines = []
    held_out = next(iter(data.evidence.values())).held_out_count
    for name, looks in result.looks.items():
        best = max(looks, key=lambda look: look.held_out)
        last = looks[-1].step
        lines.append(
            f"{name}: held-out likelihood {best.held_out:+.4g} nats/image beyond an empty map, at"
            f" step {best.step} of {last}"
        )
        if name in result.nothing:
            lines.append(
                f"{name}: no signal found: the {held_out} held-out images are no likelier than"
                " chance allows; this map is empty"
            )
    if result.resolution is not None:
        nyquist = (
            ", which is Nyquist: smaller pixels may hold more"
            if result.resolution <= 2.001 * data.scene.pixel_size
            else ""
        )
        how = "mask-corrected by phase randomisation" + (
            ", and held against direct inversions" if "unbiased" in result.curves else ""
        )
        lines.append(f"resolution: {result.resolution:.2f} Å (half-map FSC 0.143, {how}){nyquist}")
    elif result.curves:
        lines.append("resolution: none, as no signal was found")
    lines.append(f"maps and records in {out}/: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return lines
