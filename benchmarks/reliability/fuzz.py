"""Damaged inputs for every reader: each is read or refused in a line, soon, with little memory.

    python -m benchmarks.reliability.fuzz [--count 10000] [--readers star map ...] [--seed 0]
        [--out FILE.json]

Inputs are whole files, made here, of which bytes or words were changed: flipped bits, cuts, copied
and spliced pieces, extreme numbers, deep nesting. Files with checksums are tried as they are and
"resealed": what is in them was changed and the checksum made right, so that what lies behind it is
reached. An input is at fault where anything but an InstamapError comes out of the reader, its
message is no line, it takes longer than 20 s, or more than 256 MB beyond what was taken before. The
same seed draws the same inputs; the number of one at fault is in the JSON.
"""

import argparse
import gzip
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import environment
from benchmarks.lib.report import save, show, table
from instamap import checksums
from instamap.cli.earlier import translated_record
from instamap.data.formats import recognise
from instamap.data.particles import Particles
from instamap.errors import DataError, InstamapError, is_out_of_memory, line_of
from instamap.files import escaped
from instamap.fitting.checkpoint import Checkpoint, Fitted, Position
from instamap.maps import mask, mrc
from instamap.motion import conformation_maps, selection
from instamap.motion.motion_model import MotionModel
from instamap.progress import Evaluation
from instamap.simulate import particle_set
from instamap.statistics.statistics import Statistics
from instamap.tensor_files import read_npz, read_safetensors, write_npz, write_safetensors
from instamap.toml_text import read_toml, write_toml
from instamap.workflows import api
from instamap.workflows.load_result import load_result
from instamap.workflows.read_settings import Typed, read_settings
from instamap.workflows.settings import check_record
from instamap.workflows.statistics_folder import StatisticsFolder

SECONDS = 20  # that one input may take
LONGEST = 3000  # characters of a message as it is shown, with control characters escaped
MEMORY = 256_000_000  # bytes that one input may take beyond what was taken before
ADDRESSES = 1 << 30  # bytes beyond what a worker has: who asks for more at once is at fault too
BOX = 16
PIXEL = 6.0
COUNT = 40
NUMBERS = (b"0", b"-1", b"1e999", b"nan", b"inf", b"9" * 5000, b"99999999999999999999", b"1e-320")
NESTED = (
    b"[" * 20000,
    b"(" * 20000,
    b"{" * 20000,
    b'{"a":' * 5000,
    b"[[a]]\n" * 3000,
    b"a." * 9000,
)
WORDS = (
    b"\0",
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"#",
    b"loop_",
    b"data_",
)
FOUR = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80", b"\x01\0\0\0")


# What is changed


def mutated(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """A whole file's bytes with one to four changes; `other` gives pieces."""
    for _ in range(draw.integers(1, 5)):
        change = CHANGES[draw.integers(len(CHANGES))]
        data = change(data, other, draw)
    return data


def _place(data: bytes, draw: np.random.Generator) -> int:
    """Anywhere, as often as not near the start, where headers are."""
    end = len(data) if draw.random() < 0.5 else min(len(data), 1024)
    return int(draw.integers(0, end + 1))


def _flip(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(draw.integers(1, 9)):
        place = min(_place(data, draw), len(data) - 1)
        changed[place] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def _cut(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    return data[: _place(data, draw)]


def _remove(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    start = _place(data, draw)
    return data[:start] + data[start + int(draw.integers(1, 200)) :]


def _repeat(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    start = _place(data, draw)
    piece = data[start : start + int(draw.integers(1, 100))]
    times = int(draw.choice([1, 2, 50]))
    return data[:start] + piece * times + data[start:]


def _splice(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    return data[: _place(data, draw)] + other[_place(other, draw) :]


def _overwrite(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    start = _place(data, draw)
    piece = draw.bytes(int(draw.integers(1, 33)))
    return data[:start] + piece + data[start + len(piece) :]


def _four_bytes(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    start = _place(data, draw) // 4 * 4
    return data[:start] + FOUR[draw.integers(len(FOUR))] + data[start + 4 :]


def _insert(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    words = (NUMBERS, NESTED, WORDS)[draw.integers(3)]
    start = _place(data, draw)
    return data[:start] + words[draw.integers(len(words))] + data[start:]


def _number(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """Another number in the place of one that is written in digits."""
    starts = [i for i, byte in enumerate(data[:20000]) if 48 <= byte <= 57]
    if not starts:
        return _four_bytes(data, other, draw)
    start = int(draw.choice(starts))
    end = start
    while end < len(data) and data[end : end + 1] in b"0123456789.":
        end += 1
    return data[:start] + NUMBERS[draw.integers(len(NUMBERS))] + data[end:]


CHANGES = (_flip, _cut, _remove, _repeat, _splice, _overwrite, _four_bytes, _insert, _number)


# Readers


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    seeds: names of whole files in the folder of seeds, a folder's own files among them. read: what
    reads the changed file, which has the name of the seed. reseal: writes bytes with checksums that
    are right, where the usual is to write them as they are.
    """

    seeds: tuple[str, ...]
    read: Callable[[Path], object]
    reseal: Callable[[Path, np.random.Generator], None] | None = None


def _images(path: Path) -> None:
    """All images of the stack, by the STAR file beside it."""
    particles = Particles.open(path.with_name("particles.star"))
    particles.images(torch.arange(particles.count))


def _config(path: Path) -> None:
    """As `reconstruct --config` does."""
    record = translated_record(read_toml(path), str(path))
    check_record(record, str(path))
    read_settings(record, Typed())


def _table_of_states(path: Path) -> None:
    conformation_maps.read(path, 2)
    selection.lasso(torch.zeros(4, 2), path)


def _seal_list(path: Path, draw: np.random.Generator) -> None:
    checksums.write_list(path.parent)


def _seal_npz(path: Path, draw: np.random.Generator) -> None:
    """One array is changed in one of several ways."""
    arrays = dict(read_npz(path))
    name = str(draw.choice(sorted(arrays)))
    one = arrays[name]
    if one.dtype.kind == "U":
        text = mutated(str(one).encode(), str(one).encode(), draw).decode("utf-8", "replace")
        arrays[name] = np.array(text)
    else:
        arrays[name] = _another(one, draw)
    if draw.random() < 0.1:
        del arrays[name]
    write_npz(path, arrays)


def _another(array: Any, draw: np.random.Generator) -> Any:
    number = float(draw.choice([0, -1, 1e30, 2**31, 0.5]))
    ways: list[Callable[[], Any]] = [
        lambda: np.full_like(array, number, dtype=np.float64),
        lambda: np.array(number),
        lambda: array.ravel()[:-1],
        lambda: array[..., None],
        lambda: array.astype(np.float64),
        lambda: np.array("text"),
        lambda: np.zeros((0, 3)),
    ]
    return ways[draw.integers(len(ways))]()


def _seal_tensors(path: Path, draw: np.random.Generator) -> None:
    """One tensor, or the plain values, are changed."""
    tensors, values = read_safetensors(path)
    if draw.random() < 0.5:
        text = mutated(json.dumps(values).encode(), b'{"version": 1}', draw)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = {"version": 1, "scene": {"box": str(text[:20]), "pixel_size": -1}}
        if not isinstance(values, dict):
            values = {}
    else:
        name = str(draw.choice(sorted(tensors)))
        changed = _another(tensors[name].numpy(), draw)
        if changed.dtype.kind != "U":
            tensors[name] = torch.from_numpy(np.ascontiguousarray(changed))
    write_safetensors(path, tensors, values)
    checksums.write_list(path.parent)


def _seal_manifest(path: Path, draw: np.random.Generator) -> None:
    """A value is changed, or the text is left as it was changed where it cannot be read."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        values.pop("sha256", None)
        write_toml(path, {**values, "sha256": checksums.of_values(values)})
    except (ValueError, RecursionError, DataError, TypeError):
        return


READERS = {
    "star": Reader(("data/particles.star", "old/old.star"), recognise.read),
    "star.gz": Reader(("data/particles.star.gz", "old/old.star.gz"), recognise.read),
    "cryosparc": Reader(("cs/particles.cs",), recognise.read),
    "cryodrgn": Reader(("drgn/poses.pkl",), recognise.read),
    "cryodrgn ctf": Reader(
        ("drgn/ctf.pkl",), lambda path: recognise.read(path.with_name("poses.pkl"))
    ),
    "stack": Reader(("data/particles.mrcs",), _images),
    "map": Reader(("run/map.mrc", "run/map.mrc.gz"), mrc.read),
    "mask": Reader(("run/mask.mrc",), lambda path: mask.load(path, BOX, PIXEL)),
    "statistics": Reader(("stats/half1.npz",), Statistics.load),
    "statistics, resealed": Reader(("stats/half1.npz",), Statistics.load, _seal_npz),
    "statistics folder": Reader(
        ("stats/accumulate.toml",), lambda path: StatisticsFolder.open(path.parent), _seal_manifest
    ),
    "checkpoint": Reader(("half1.npz",), Checkpoint.load),
    "checkpoint, resealed": Reader(("half1.npz",), Checkpoint.load, _seal_npz),
    "model": Reader(
        ("run/half1.safetensors",), lambda path: MotionModel.open(path.parent), _seal_list
    ),
    "model, resealed": Reader(
        ("run/half1.safetensors",), lambda path: MotionModel.open(path.parent), _seal_tensors
    ),
    "latents": Reader(("run/latents.npy",), lambda path: MotionModel.open(path.parent), _seal_list),
    "settings": Reader(("run/run.toml",), _config),
    "result": Reader(
        ("run/result.json", "run/motion.json", "run/run.toml", "run/fsc.csv", "run/log.jsonl"),
        lambda path: load_result(path.parent),
        _seal_list,
    ),
    "checksums": Reader(("run/SHA256SUMS",), lambda path: load_result(path.parent)),
    "states": Reader(("z.csv", "plain.csv"), _table_of_states),
}


# Whole files


def make_seeds(folder: Path) -> None:
    """Whole files of every kind, small ones."""
    star = particle_set.demo(folder / "data", count=COUNT, box=BOX, pixel_size=PIXEL, snr=1.0)
    if star.name != "particles.star":
        raise RuntimeError(f"the set is called {star.name}")
    _pack(star)
    _old_star(folder / "old", star)
    _other_formats(folder)
    run = api.reconstruct(
        star,
        deformation="bending-field",
        workflow=("motion", {"nodes": 3, "dimensions": 1}),
        objective=("conformations", {"steps": 2}),
        held_out=0.3,
    )
    run.save(folder / "run")
    _pack(folder / "run" / "map.mrc")
    api.accumulate(star, folder / "stats")
    _checkpoint().save(folder / "half1.npz")
    (folder / "z.csv").write_text("z1,z2\n0.5,1\n-1,2e-3\n0,0\n")
    (folder / "plain.csv").write_text("0.5,1\n-1,2e-3\n0,0\n")


def _pack(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def _old_star(folder: Path, star: Path) -> None:
    """The particles without a table of optics, as RELION 3.0 wrote them."""
    folder.mkdir()
    columns = "rlnImageName rlnAngleRot rlnAngleTilt rlnAnglePsi rlnOriginX rlnOriginY rlnVoltage"
    columns += " rlnSphericalAberration rlnAmplitudeContrast rlnDefocusU rlnDefocusV"
    columns += " rlnDefocusAngle rlnMagnification rlnDetectorPixelSize"
    lines = ["", "data_", "", "loop_"]
    lines += [f"_{name} #{i}" for i, name in enumerate(columns.split(), 1)]
    for i in range(1, 6):
        lines.append(
            f"{i:06d}@particles.mrcs {10 * i} 20 30 0.5 -1 300 2.7 0.1 12000 11000 40 1e4 6"
        )
    path = folder / "old.star"
    path.write_text("\n".join(lines) + "\n")
    shutil.copy(star.with_suffix(".mrcs"), folder / "particles.mrcs")
    _pack(path)


def _other_formats(folder: Path) -> None:
    """The same number of particles as cryoSPARC and cryoDRGN have them, all seen from one side."""
    count = 6
    columns = {
        "uid": np.arange(count, dtype=np.uint64),
        "blob/path": np.full(count, b"images.mrcs"),
        "blob/idx": np.arange(count, dtype=np.uint32),
        "blob/shape": np.full((count, 2), BOX, np.uint32),
        "blob/psize_A": np.full(count, PIXEL),
        "ctf/accel_kv": np.full(count, 300.0),
        "ctf/cs_mm": np.full(count, 2.7),
        "ctf/amp_contrast": np.full(count, 0.1),
        "ctf/df1_A": np.full(count, 12000.0),
        "ctf/df2_A": np.full(count, 11000.0),
        "ctf/df_angle_rad": np.full(count, 0.3),
        "ctf/phase_shift_rad": np.zeros(count),
        "alignments3D/split": np.arange(count, dtype=np.uint32) % 2,
        "alignments3D/pose": np.linspace(0, 1, 3 * count).reshape(count, 3),
        "alignments3D/shift": np.zeros((count, 2)),
        "alignments3D/psize_A": np.full(count, PIXEL),
    }
    rows = np.empty(count, [(name, one.dtype, one.shape[1:]) for name, one in columns.items()])
    for name, one in columns.items():
        rows[name] = one
    (folder / "cs").mkdir()
    with (folder / "cs" / "particles.cs").open("wb") as file:
        np.save(file, rows)
    (folder / "drgn").mkdir()
    poses = (np.tile(np.eye(3), (count, 1, 1)), np.zeros((count, 2)))
    ctf = np.tile([BOX, PIXEL, 12000, 11000, 40, 300, 2.7, 0.1, 0.0], (count, 1))
    (folder / "drgn" / "poses.pkl").write_bytes(pickle.dumps(poses))
    (folder / "drgn" / "ctf.pkl").write_bytes(pickle.dumps(ctf))
    (folder / "drgn" / "images.mrcs").touch()


def _checkpoint() -> Checkpoint:
    weights = {"a": torch.arange(6.0).view(2, 3)}
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]}
    generator = torch.Generator().manual_seed(3).get_state()
    best = Fitted(weights, optimiser, torch.ones(2))
    evaluations = [Evaluation(5, 1 / 3, 0.5, True, 0.1)]
    return Checkpoint(Position(), evaluations, weights, optimiser, {}, generator, best)


# A worker: many inputs in one process


def work(
    seeds: Path, name: str, first: int, count: int, seed: int, limited: bool = True
) -> list[dict]:
    """Tries inputs first..first+count-1 of a reader; what came out of each, as rows of JSON.

    limited: sets a limit to the addresses of this process.
    """
    signal.signal(signal.SIGALRM, _too_long)
    reader = READERS[name]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "seeds"
        shutil.copytree(seeds, folder)
        for relative in reader.seeds:  # imports and caches are not the inputs' memory
            _try(reader, folder / relative)
        if limited:
            limit = _addresses() + ADDRESSES
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(first, first + count):
                rows.append({"input": number, **_one(reader, folder, seeds, name, number, seed)})
    return rows


def _one(reader: Reader, folder: Path, seeds: Path, name: str, number: int, seed: int) -> dict:
    key = [seed, number, *name.encode()]
    draw = np.random.default_rng(key)
    relative = reader.seeds[draw.integers(len(reader.seeds))]
    alike = [seed for seed in reader.seeds if Path(seed).suffix == Path(relative).suffix]
    other = alike[draw.integers(len(alike))]
    path = folder / relative
    whole = (seeds / relative).read_bytes()
    path.write_bytes(_changed(path, whole, (seeds / other).read_bytes(), reader, draw))
    if reader.reseal is not None:
        if reader.reseal in (_seal_npz, _seal_tensors):
            path.write_bytes(whole)
        reader.reseal(path, draw)
    before = _peak()
    began = time.monotonic()
    outcome = _try(reader, path)
    seconds = time.monotonic() - began
    taken = _peak() - before
    if taken > MEMORY:
        outcome = {"outcome": "memory", "why": f"{taken / 1e6:.0f} MB"}
    path.write_bytes(whole)
    if reader.reseal is not None and (seeds / relative).with_name(checksums.LIST).exists():
        shutil.copy((seeds / relative).with_name(checksums.LIST), path.parent)
    return {**outcome, "seconds": seconds}


def _changed(
    path: Path, whole: bytes, other: bytes, reader: Reader, draw: np.random.Generator
) -> bytes:
    """The bytes with changes; of what is packed, as often as not the content was changed."""
    if path.suffix == ".gz" and draw.random() < 0.5:
        inner = mutated(gzip.decompress(whole), gzip.decompress(other), draw)
        return gzip.compress(inner, compresslevel=1)
    return mutated(whole, other, draw)


def _try(reader: Reader, path: Path) -> dict:
    signal.alarm(SECONDS)
    try:
        reader.read(path)
    except InstamapError as error:
        if any(is_out_of_memory(one) for one in _chain(error)):
            return {"outcome": "memory", "why": f"asked for too much: {traceback.format_exc()}"}
        line = escaped(line_of(error))  # as the command line shows it
        if not line or len(line) > LONGEST or "weights_only" in line:
            return {"outcome": "message", "why": f"{len(line)} characters: {line[:300]}"}
        return {"outcome": "refused"}
    except TimeoutError:
        return {"outcome": "hang", "why": f"more than {SECONDS} s"}
    except BaseException:
        return {"outcome": "traceback", "why": traceback.format_exc(limit=-3)[-1500:]}
    finally:
        signal.alarm(0)
    return {"outcome": "read"}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# The benchmark


def fuzz(seeds: Path, name: str, count: int, seed: int, batch: int = 2500) -> list[dict]:
    """What came out of each input, tried in processes of their own: one that dies is a row too."""
    rows: list[dict] = []
    while len(rows) < count:
        some = min(batch, count - len(rows))
        words = [str(seeds), name, str(len(rows)), str(some), str(seed)]
        command = [sys.executable, "-m", "benchmarks.reliability.fuzz", "--worker", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows += found
        if len(found) < some:
            why = f"exit {done.returncode}: {done.stderr[-500:]}"
            rows.append({"input": len(rows), "outcome": "crash", "why": why, "seconds": 0.0})
    return rows


FAULTS = ("traceback", "message", "hang", "memory", "crash")


def summary(name: str, rows: list[dict]) -> dict:
    """Counts of outcomes, the slowest input, and a few of those at fault."""
    counts = {
        word: sum(row["outcome"] == word for row in rows) for word in ("read", "refused", *FAULTS)
    }
    faulty = [row for row in rows if row["outcome"] in FAULTS]
    slowest = max(row["seconds"] for row in rows)
    return {
        "reader": name,
        "inputs": len(rows),
        **counts,
        "slowest": slowest,
        "at_fault": faulty[:20],
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        seeds, name, first, count, seed = sys.argv[2:]
        torch.set_num_threads(1)
        for row in work(Path(seeds), name, int(first), int(count), int(seed)):
            show(json.dumps(row))
        return
    add = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add.add_argument("--count", type=int, default=10_000, help="inputs for each reader")
    add.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--out", type=Path, metavar="FILE.json")
    options = add.parse_args()
    where = environment()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        seeds = Path(temporary) / "seeds"
        seeds.mkdir()
        make_seeds(seeds)
        for name in options.readers:
            result = summary(name, fuzz(seeds, name, options.count, options.seed))
            results.append(result)
            show(" ".join(f"{key} {value}" for key, value in result.items() if key != "at_fault"))
    head = ["reader", "inputs", "read", "refused", *FAULTS, "slowest"]
    show(table(head, [[str(result[key]) for key in head] for result in results]))
    save(options.out, "fuzz", where, results, seed=options.seed)
    if any(result["at_fault"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
