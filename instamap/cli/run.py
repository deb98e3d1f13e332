"""Carries out a reconstruction for a person: settings from options and run.toml, what was chosen, progress, where things are."""

import dataclasses
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from instamap import compose
from instamap.components import KINDS
from instamap.errors import DataError, OptionError
from instamap.fit.loop import Look
from instamap.fit.reconstruct import AUTO, Data, Settings, reconstruct
from instamap.fit.record import read_toml
from instamap.options import parse, to_dict
from instamap.registry import default

PLAIN = {"particles": Path, "datadir": Path, "mask": Path, "halves": bool, "together": str, "held_out": float, "seed": int}


def settings(config: Path | None, plain: dict, names: dict[str, str | None], items: dict[str, list[str]]) -> Settings:
    """Settings from a run.toml (if any), over which the options given on the command line (those not None) win."""
    before = _checked(read_toml(config), config) if config else {}
    given = {**{k: before[k] for k in PLAIN if k in before}, **{k: v for k, v in plain.items() if v is not None}}
    if "particles" not in given:
        raise DataError("no particles: give a STAR file, or --config with the run.toml of an earlier run")
    choices = {kind: _choice(kind, names[kind], items[kind], dict(before.get(kind, {}))) for kind in KINDS}
    values = {k: PLAIN[k](v) for k, v in given.items()}
    return Settings(**values, engine=choices.pop("engine"), parts=choices)


def _checked(before: dict, config: Path) -> dict:
    known = {**PLAIN, "instamap": str, **dict.fromkeys(KINDS, dict)}
    for key, value in before.items():
        kind = {Path: str, float: (int, float)}.get(known.get(key), known.get(key))
        if kind is None:
            raise OptionError(f"'{key}' in '{config}' is unknown; choose {', '.join(known)}")
        if not isinstance(value, kind):
            raise OptionError(f"'{key}' in '{config}' is {value!r}; it must be {'a table' if kind is dict else known[key].__name__}")
    return before


def _choice(kind: str, name: str | None, items: list[str], before: dict) -> compose.Choice:
    """The part named on the command line, else in run.toml (whose options are then the defaults), else the usual one."""
    earlier = before.pop("name", None)
    name = name or earlier or {**compose.DEFAULTS, "engine": AUTO.name}[kind]
    if kind == "engine" and name == AUTO.name:
        if items:
            raise OptionError(f"option '{items[0]}' is for one engine, but engine is 'auto'; add --engine images or --engine normal")
        return AUTO
    options = default().get(kind, name).load().Options
    if name != earlier or not before:
        return compose.choose(kind, name, items)
    chosen = parse(options, items)
    keys = {item.partition("=")[0] for item in items}
    start = compose.choose(kind, name, before).options
    return compose.Choice(name, dataclasses.replace(start, **{k: getattr(chosen, k) for k in keys}))


def run(chosen: Settings, out: Path, force: bool) -> None:
    """Reconstruct, with a progress bar on standard error and the outcome on standard output."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description:6}"), BarColumn(24), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left at most"), TimeRemainingColumn(),
               TextColumn("{task.fields[state]}")]  # fmt: skip
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def announce(data: Data) -> None:
            for line in introduction(chosen, data):
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
            steps = data.engine.options.steps
            tasks.update({n: progress.add_task(n, total=steps, rate="", state="") for n in data.evidence})

        def watch(name: str, look: Look) -> None:
            state = f"held-out {look.held_out:+.4g} nats/image" + ("" if look.best else " (past its best)")
            rate = f"{look.step / max(look.seconds, 1e-9):.1f} steps/s"
            progress.update(tasks[name], completed=look.step, rate=rate, state=state)

        def count(done: int, total: int) -> None:
            if "read" not in tasks:
                tasks["read"] = progress.add_task("read", total=total, rate="", state="images")
            progress.update(tasks["read"], completed=done)

        result = reconstruct(chosen, out, force=force, watch=watch, count=count, announce=announce)
    for line in conclusion(result, out):
        typer.echo(line)


def introduction(chosen: Settings, data: Data) -> list[str]:
    """What is about to happen, in lines for a person."""
    scene, particles = data.scene, data.particles
    sets = ", ".join(f"{name} {len(one.rows)}" for name, one in data.evidence.items())
    kind = "premultiplied by the CTF" if scene.premultiplied else "with contrast transfer"
    held_out = len(next(iter(data.evidence.values())).held_out)
    lines = [f"particles       {particles.path}: {particles.count} images of {scene.box} px at {scene.pixel_size:g} Å, {kind}",
             f"sets            {sets}, held out {held_out}"]  # fmt: skip
    if particles.ignored:
        lines.append(f"not modelled    {', '.join(particles.ignored)}")
    share = float((scene.mask > 0).float().mean())
    lines.append(f"mask            {chosen.mask or 'found in a first map, written to mask.mrc'}: {share:.0%} of the box")
    for part, choice in {**chosen.parts, "engine": data.engine}.items():
        options = " ".join(f"{k}={v}" for k, v in to_dict(choice.options).items())
        auto = " (auto)" if part == "engine" and chosen.engine.name == "auto" else ""
        lines.append(f"{part:15} {choice.name}{auto}  {options}".rstrip())
    return lines


def conclusion(result, out: Path) -> list[str]:
    """Where things are and what they are worth."""
    lines = []
    for name, looks in result.looks.items():
        best = max(looks, key=lambda look: look.held_out)
        lines.append(f"{name}: held-out likelihood {best.held_out:+.4g} nats/image beyond an empty map, at step {best.step} of {looks[-1].step}")
        if best.held_out <= 0:
            lines.append(f"{name}: no signal found: no step explains held-out images better than an empty map; do not interpret this map")
    if result.resolution is not None:
        lines.append(f"resolution {result.resolution:.2f} Å (half-map FSC 0.143, corrected for the mask by phase randomisation)")
    lines.append(f"maps and records in {out}/: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return lines
