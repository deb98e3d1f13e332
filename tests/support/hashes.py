"""Hashes of what the command line computes, to prove that a refactoring changes none of it.

    python tests/support/hashes.py WORKDIR OUT.json [--before] [--compare BEFORE.json]

Runs small reconstructions of made-up sets, as subprocesses of the `instamap` on the import path.
None of it is imported here, so that an earlier version can be run: set PYTHONPATH to its folder.
--before spells options as that version does; see SPELLING.

"maps and tables" are hashes of values: of arrays and tensors, and of CSV and STAR files' text.
"records" are what JSON files and logs say, whose names may change, apart from seconds.
With --compare, the exit status is 1 where maps and tables differ; the rest is told.
"""

# ruff: noqa: T201

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import starfile
import torch

# What is written differently: before, after.
SPELLING = {
    "IMAGES": ("--engine images", "--objective images"),
    "OPTION": ("-E", "-O"),
    "LOOK": ("look", "evaluate_every"),
    "REPRESENTATION": ("--representation", "--representation"),
    "FROM": ("from", "from"),
    "STAGE": ("--stage", "--stage"),
    "FLOOR": ("floor", "floor"),
    "WEIGHT": ("positivity", "positivity"),
    "RIGID": ("", "--rigid"),
}

# Name of the folder that a step writes to, and the words of its command; "{SPELLING}" as above.
# Options end with the folder. A step may take threads of its own, as "*2" after its name.
STEPS = (
    ("demo", "demo {RIGID}"),
    ("still", "simulate demo/truth.mrc -n 1000 --snr 0.05"),
    (
        "still-coloured",
        "simulate demo/truth.mrc -n 300 --snr 0.2 --noise coloured --scale 0.1 --offset 0.2"
        " --seed 4",
    ),
    # All images at once.
    ("plain", "reconstruct still/particles.star"),
    ("plain-threads*2", "reconstruct still/particles.star --seed 1"),
    ("c2", "reconstruct still/particles.star --symmetry C2 --likelihood coloured"),
    ("corners", "reconstruct still-coloured/particles.star --likelihood coloured -L noise=corners"),
    ("voxel", "reconstruct still/particles.star {REPRESENTATION} voxel"),
    ("one", "reconstruct still/particles.star --no-halves --seed 7"),
    (
        "unbounded",
        "reconstruct still/particles.star -R {FLOOR}=none -R {WEIGHT}=0.5 -R total_variation=1",
    ),
    (
        "frequency",
        "reconstruct still/particles.star {REPRESENTATION} frequency"
        " {STAGE} steps=20|jitter=2|jitter_end=1 {STAGE} steps=10|decay=0.1",
    ),
    ("mask", "reconstruct still/particles.star --mask plain/mask.mrc"),
    ("again", "reconstruct --config one/run.toml --seed 8"),
    (
        "weights",
        "reconstruct moving/particles.star --weights rlnParticleFigureOfMerit"
        " --together rlnGroupName",
    ),
    # Smaller images.
    ("crop", "reconstruct still/particles.star --crop 28 --box 20 --normalise"),
    ("small", "preprocess still/particles.star --crop 30 --box 24 --normalise"),
    ("of-small", "reconstruct small/particles.star"),
    # Statistics.
    ("shard1", "accumulate still/particles.star --shard 1/2"),
    ("shard2", "accumulate still/particles.star --shard 2/2"),
    ("shards", "merge shard1 shard2"),
    ("of-shards", "fit shards"),
    ("of-shards-voxel", "fit shards {REPRESENTATION} voxel --no-halves"),
    # Mini-batches.
    ("batches", "reconstruct still/particles.star {IMAGES} {OPTION} steps=24 {OPTION} {LOOK}=8"),
    (
        "batches-ray",
        "reconstruct still/particles.star {IMAGES} {OPTION} steps=24 {OPTION} {LOOK}=8"
        " --forward ray --likelihood bioem --no-halves",
    ),
    (
        "batches-turn",
        "reconstruct still/particles.star {IMAGES} {OPTION} steps=24 {OPTION} {LOOK}=8"
        " {OPTION} turn=2 {OPTION} move=1 --likelihood correlation --no-halves",
    ),
    # Poses.
    ("poses", "reconstruct wrong/particles.star --deform rigid"),
    (
        "poses-image",
        "reconstruct wrong/particles.star --deform rigid -D {FROM}=image {IMAGES}"
        " {OPTION} steps=24 {OPTION} {LOOK}=8",
    ),
    (
        "poses-bodies",
        "reconstruct moving/particles.star --deform rigid -D bodies=moving/low.mrc,moving/high.mrc"
        " {IMAGES} {OPTION} steps=24 {OPTION} {LOOK}=8",
    ),
    # Motion.
    ("bent", "reconstruct moving/particles.star --deform bending-field"),
    ("bent-two", "reconstruct moving/particles.star --deform bending-field -D latent=2"),
    ("maps", "reconstruct moving/particles.star --deform subspace"),
    (
        "bent-batches",
        "reconstruct moving/particles.star --deform bending-field {IMAGES}"
        " {OPTION} steps=24 {OPTION} {LOOK}=8",
    ),
    (
        "bent-image",
        "reconstruct moving/particles.star --deform bending-field -D {FROM}=image {IMAGES}"
        " {OPTION} steps=24 {OPTION} {LOOK}=8 --no-halves",
    ),
    # What is made of it.
    ("states", "states bent --frames 3"),
    ("path", "states bent --path 4 --frames 0"),
    ("states-maps", "states maps --kmeans 3 --frames 0"),
    ("infer", "infer bent moving/particles.star"),
    ("infer-maps", "infer maps moving/particles.star"),
    ("infer-batches", "infer bent-batches moving/particles.star"),
    ("audit", "audit bent"),
    ("audit-batches", "audit bent-batches"),
    ("select.star", "select bent --within -1,0.2"),
)
MAKE = {"still": "wrong", "still-coloured": "moving"}  # sets that are made after a step
BOX, PIXEL = 32, 5.0  # of the moving set: pixels, Å
COUNT, DEGREES = 600, 60.0  # images, and how far the arm swings to either side
ARRAYS = (".npy", ".npz", ".mrc", ".mrcs", ".pt", ".safetensors")
TABLES, RECORDS = (".csv", ".star"), (".json", ".jsonl")
MAPS = "maps and tables"


def words(command: str, before: bool) -> list[str]:
    """The words of a command; "|" stands for a space within one."""
    spelling = {name: both[0 if before else 1] for name, both in SPELLING.items()}
    return [word.replace("|", " ") for word in command.format(**spelling).split()]


def run(work: Path, arguments: list[str], threads: int) -> subprocess.CompletedProcess:
    """Run the command line in the folder `work`."""
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    environment = {**os.environ, **count, "OMP_WAIT_POLICY": "passive"}
    code = "import sys; from instamap.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)


def library(work: Path) -> str:
    """The folder of the `instamap` that is run."""
    command = [sys.executable, "-c", "import instamap; print(*instamap.__path__)"]
    return subprocess.check_output(command, cwd=work, text=True).strip()


def run_all(work: Path, before: bool, only: list[str] | None) -> dict[str, str]:
    """Run all steps, or those named; "ok" or "failed" of each."""
    done = {}
    for name, command in STEPS:
        name, _, threads = name.partition("*")
        if only and name not in only:
            continue
        began = time.perf_counter()
        outcome = run(work, [*words(command, before), "-o", name], int(threads or 1))
        done[f"step {name}"] = "failed" if outcome.returncode else "ok"
        print(f"{time.perf_counter() - began:7.1f} s  {name}", flush=True)
        if outcome.returncode:
            print(f"FAILED: {command}\n{outcome.stderr[-2000:]}", flush=True)
        if MAKE.get(name) == "wrong":
            make_wrong(work / "still" / "particles.star", work / "wrong")
        elif MAKE.get(name) == "moving":
            make_moving(work / "moving")
    return done


# Sets.


def make_wrong(star: Path, folder: Path, degrees: float = 3.0, shift: float = 6.0) -> None:
    """Write the particles of `star` with poses that err by so much, in each angle and axis."""
    tables, random = starfile.read(star, always_dict=True), np.random.default_rng(1)
    table = tables["particles"]
    for axis in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
        table[axis] += degrees * random.standard_normal(len(table))
    for axis in ("rlnOriginXAngst", "rlnOriginYAngst"):
        table[axis] += shift * random.standard_normal(len(table))
    number = table["rlnImageName"].str.split("@").str[0]
    table["rlnImageName"] = number + f"@../{star.parent.name}/particles.mrcs"
    folder.mkdir()
    starfile.write(tables, folder / "particles.star")


def make_moving(folder: Path, snr: float = 0.5) -> None:
    """Write images of a hinge, an arm of which swings, and soft masks of its two parts."""
    random = np.random.default_rng(2)
    euler = np.stack(
        [
            random.uniform(-180, 180, COUNT),
            np.degrees(np.arccos(random.uniform(-1, 1, COUNT))),
            random.uniform(-180, 180, COUNT),
        ],
        1,
    )
    origin = PIXEL * random.standard_normal((COUNT, 2))
    defocus = random.uniform(8e3, 2e4, COUNT)
    group = random.integers(1, 3, COUNT)
    angle = np.radians(DEGREES) * random.uniform(-1, 1, COUNT)
    images = seen(angle, rotations(euler), origin, defocus, np.where(group == 1, 300.0, 200.0))
    sigma = float(np.sqrt(images.var() / snr))
    images = images / sigma + random.standard_normal(images.shape)
    folder.mkdir()
    write_map(folder / "particles.mrcs", images)
    number = range(1, COUNT + 1)
    columns = {
        "rlnImageName": [f"{i:06d}@particles.mrcs" for i in number],
        "rlnOpticsGroup": group,
        "rlnGroupName": [f"g{(i + 1) // 2}" for i in number],
        "rlnParticleFigureOfMerit": np.round(random.uniform(0.2, 1, COUNT), 6),
        "rlnAngleRot": euler[:, 0],
        "rlnAngleTilt": euler[:, 1],
        "rlnAnglePsi": euler[:, 2],
        "rlnOriginXAngst": origin[:, 0],
        "rlnOriginYAngst": origin[:, 1],
        "rlnDefocusU": defocus,
        "rlnDefocusV": defocus,
        "rlnDefocusAngle": np.zeros(COUNT),
    }
    optics = {
        "rlnOpticsGroup": [1, 2],
        "rlnVoltage": [300.0, 200.0],
        "rlnSphericalAberration": [2.7, 2.7],
        "rlnAmplitudeContrast": [0.1, 0.1],
        "rlnImagePixelSize": [PIXEL, PIXEL],
        "rlnImageSize": [BOX, BOX],
        "rlnImageDimensionality": [2, 2],
    }
    text = loop("optics", optics) + loop("particles", columns)
    (folder / "particles.star").write_text(text, encoding="utf-8")
    axis = PIXEL * (np.arange(BOX) - BOX // 2)
    high = 1 / (1 + np.exp(-(axis[:, None, None] + np.zeros((BOX,) * 3)) / PIXEL))
    write_map(folder / "high.mrc", high)
    write_map(folder / "low.mrc", 1 - high)


def loop(name: str, columns: dict) -> str:
    """A table of a STAR file."""
    cell = lambda value: f"{value:.6f}" if isinstance(value, float) else str(value)  # noqa: E731
    rows = [" ".join(cell(value) for value in row) for row in zip(*columns.values(), strict=True)]
    heads = [f"_{column} #{number}" for number, column in enumerate(columns, 1)]
    return "\n".join([f"data_{name}", "", "loop_", *heads, *rows, "", ""])


def write_map(path: Path, values: np.ndarray) -> None:
    """Write a map or a stack."""
    with mrcfile.new(path) as file:
        file.set_data(values.astype(np.float32))
        if path.suffix == ".mrcs":
            file.set_image_stack()
        file.voxel_size = PIXEL


def rotations(euler: np.ndarray) -> np.ndarray:
    """Matrices "n 3 3" of RELION's angles "n 3" (degrees): x lands at A x."""
    about = {}
    for name, angle in zip(("rot", "tilt", "psi"), np.radians(euler).T, strict=True):
        c, s, o, one = np.cos(angle), np.sin(angle), np.zeros(len(angle)), np.ones(len(angle))
        rows = [c, o, -s, o, one, o, s, o, c] if name == "tilt" else [c, s, o, -s, c, o, o, o, one]
        about[name] = np.stack(rows, 1).reshape(-1, 3, 3)
    return about["psi"] @ about["tilt"] @ about["rot"]


def seen(
    angle: np.ndarray,
    rotation: np.ndarray,
    origin: np.ndarray,
    defocus: np.ndarray,
    kilovolts: np.ndarray,
) -> np.ndarray:
    """Images "n y x", with CTF, of Gaussian blobs, the upper ones turned by `angle` about x."""
    blobs = [  # x, y, z in Å, and mass; none is above the hinge but the arm
        (12, 5, -40, 2.0),
        (-14, 18, -22, 3.0),
        (16, -12, -18, 2.0),
        (-5, -20, -34, 2.5),
        (3, 10, -6, 2.0),
        (0, 4, 16, 2.0),
        (6, 8, 30, 2.5),
        (-8, 6, 42, 3.0),
    ]
    axis, width = PIXEL * (np.arange(BOX) - BOX // 2), 7.0
    images, c, s = np.zeros((len(angle), BOX, BOX)), np.cos(angle), np.sin(angle)
    for x, y, z, mass in blobs:
        turned = (y * c - z * s, y * s + z * c) if z > 0 else (y + 0 * c, z + 0 * c)
        place = np.stack([x + 0 * c, *turned], 1)
        landed = (rotation * place[:, None]).sum(2)[:, :2] - origin
        along = np.exp(-0.5 * ((axis - landed[..., None]) / width) ** 2)
        images += mass * along[:, 1, :, None] * along[:, 0, None, :]
    volt = kilovolts * 1e3
    wave = (12.2643247 / np.sqrt(volt * (1 + volt * 0.978466e-6)))[:, None, None]
    frequency = np.fft.fftfreq(BOX, PIXEL)
    s2 = frequency[:, None] ** 2 + frequency[: BOX // 2 + 1] ** 2
    phase = np.pi * wave * defocus[:, None, None] * s2 - 0.5 * np.pi * 2.7e7 * wave**3 * s2**2
    transfer = np.sqrt(1 - 0.01) * np.sin(phase) + 0.1 * np.cos(phase)
    return np.fft.irfft2(np.fft.rfft2(images) * transfer, s=(BOX, BOX))


# Hashes.


def hashes(work: Path) -> dict[str, dict]:
    """Of all files below the folder `work`, in both sections."""
    found: dict[str, dict] = {MAPS: {}, "records": {}}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if path.suffix in ARRAYS:
            arrays, said = read_arrays(path)
            if path.suffix in (".npz", ".pt", ".safetensors"):
                name = name.removesuffix(path.suffix)  # one may replace another
            for key, array in arrays.items():
                found[MAPS][f"{name}#{key}" if key else name] = of_array(array)
            for key, value in said.items():
                found["records"][f"{name}#{key}"] = value
        elif path.suffix in TABLES:
            text = plain(path, work)
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            found[MAPS][name] = sha("\n".join(lines).encode())
        elif path.suffix in RECORDS:
            for key, value in read_record(path, work).items():
                found["records"][f"{name}#{key}"] = value
    return found


def sha(data: bytes) -> str:
    """Of bytes."""
    return hashlib.sha256(data).hexdigest()


def of_array(array: np.ndarray) -> str:
    """Of type, shape and values, whatever the order of bytes in the file."""
    array = np.asarray(array)
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(array.shape)
    return sha(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())


def plain(path: Path, work: Path) -> str:
    """The text of a file in which the folder `work` is called WORKDIR."""
    return path.read_text(encoding="utf-8").replace(str(work), "WORKDIR")


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of a file by name, "" for a lone one, and what else it says."""
    if path.suffix in (".mrc", ".mrcs"):
        with mrcfile.open(path, permissive=True) as file:
            size = file.voxel_size.tolist()
            return {"": file.data.copy()}, {"voxel_size": json.dumps(size)}
    if path.suffix == ".npy":
        return {"": np.load(path)}, {}
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {key: file[key] for key in sorted(file)}
        return arrays, {name: str(arrays.pop(name, None)) for name in ("version", "sha256")}
    if path.suffix == ".safetensors":
        from instamap.tensor_files import read_safetensors

        tensors, values = read_safetensors(path)
        return {key: tensors[key].numpy() for key in sorted(tensors)}, {"": json.dumps(values)}
    flat = flattened(torch.load(path, map_location="cpu", weights_only=True))
    arrays = {key: v.numpy() for key, v in flat.items() if isinstance(v, torch.Tensor)}
    return arrays, {key: repr(v) for key, v in flat.items() if key not in arrays}


def flattened(value, name: str = "") -> dict:
    """Leaves of nested dictionaries, by their path with dots."""
    if not isinstance(value, dict):
        return {name: value}
    items = sorted(value.items(), key=lambda item: str(item[0]))
    return {
        path: leaf
        for key, inner in items
        for path, leaf in flattened(inner, f"{name}.{key}".lstrip(".")).items()
    }


def read_record(path: Path, work: Path) -> dict[str, str]:
    """What a JSON file says, by the path of each value; of a log one hash for each fit."""
    text = plain(path, work)
    if path.suffix == ".json":
        leaves = flattened(json.loads(text)).items()
        said = {key: json.dumps(leaf, sort_keys=True) for key, leaf in leaves}
        return {key: v if len(v) < 100 else sha(v.encode()) for key, v in said.items()}
    fits: dict[str, list[str]] = {}
    for line in text.splitlines():
        entry = json.loads(line)
        entry.pop("seconds", None)
        fits.setdefault(str(entry.get("fit")), []).append(json.dumps(entry, sort_keys=True))
    return {name: sha("\n".join(lines).encode()) for name, lines in sorted(fits.items())}


def compare(before: dict, after: dict) -> bool:
    """Print what differs; whether maps and tables are the same.

    Values that are found under another name in the same folder, and nowhere under their own, are
    the same.
    """
    same = True
    for section in before:
        old, new = before[section], after.get(section, {})
        differ = [key for key in old if key in new and old[key] != new[key]]
        missing = [key for key in old if key not in new]
        added = [key for key in new if key not in old]
        if section == MAPS:
            missing, added = renamed(old, new, missing, added)
            same = not differ and not missing
        print(f"{section}: {len(old)} before, {len(new)} after")
        for kind, keys in (("differs", differ), ("missing", missing), ("new", added)):
            for key in keys:
                values = [some[key][:60] for some in (old, new) if key in some and section != MAPS]
                print(f"  {kind:8} {key}  {' -> '.join(values)}".rstrip())
        print(f"  {len(differ)} differ, {len(missing)} are missing, {len(added)} are new")
    return same


def renamed(
    old: dict, new: dict, missing: list[str], added: list[str]
) -> tuple[list[str], list[str]]:
    """What is left of missing and added names when those of the same values are paired."""
    folder = lambda key: key.split("#")[0].rpartition("/")[0]  # noqa: E731
    left, waiting = [], list(added)
    for key in missing:
        match = [k for k in waiting if new[k] == old[key] and folder(k) == folder(key)]
        if match:
            waiting.remove(match[0])
            print(f"  renamed  {key} -> {match[0]}")
        else:
            left.append(key)
    return left, waiting


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="new or empty folder to run in")
    parser.add_argument("out", type=Path, help="file of hashes to write")
    parser.add_argument("--before", action="store_true", help="spell options as before")
    parser.add_argument("--compare", type=Path, metavar="BEFORE.json", help="hashes of before")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, in a folder in use")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()) and not given.only:
        parser.error(f"{given.work} is not empty")
    print(f"runs {library(work)}", flush=True)
    began = time.perf_counter()
    done = run_all(work, given.before, given.only)
    print(f"{time.perf_counter() - began:7.1f} s  in all")
    found = hashes(work)
    found[MAPS] |= done
    given.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    same = compare(json.loads(given.compare.read_text()), found) if given.compare else True
    print("same" if same else "NOT the same")
    sys.exit(not same or "failed" in done.values())


if __name__ == "__main__":
    main()
