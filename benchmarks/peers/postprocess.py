"""Postprocessing by instamap and by relion_postprocess of the same half maps: resolution, local
resolution, what is told of pure noise, correlation with the truth, time and memory.

    python -m benchmarks.peers.postprocess --data FILE.pdb [--box 128] [--pixel 1.2]
        [--seeds 1 2 3] [--out FILE.json]

Half maps are the potential of an atomic model whose B-factor rises from one end to the other, so
that its local resolution does, and white noise. CORRELATION: of the locally filtered map with the
truth inside the mask; both programs use the same B-factor there. MEDIAN: local resolution inside
the mask. NOISE: share of places in which local resolution is said to be better than the lowest that
the program says, of two maps of noise alone. RELION's local resolution is sampled at every
--sampling Å, with its own default windows.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.programs import INSTAMAP, Run, measure
from benchmarks.lib.report import median, megabytes, save, show, table
from instamap.geometry import grids
from instamap.maps import mask, mrc, sharpening
from instamap.simulate import atomic_model
from instamap.simulate.potential import Potential
from instamap.workflows.record import read_json

B_FACTORS = (20.0, 220.0)  # Å², at the ends of the model's longest axis
NOISE = 10.0  # noise's power at 4 Å, in units of the mean power of the signal there
SHARPENING = -20.0  # Å²
RELION_LOWEST = 50.0  # Å, --locres_minres
HEAD = ["program", "resolution", "median", "correlation", "noise", "seconds", "local s", "MB"]


def main() -> None:
    """Makes half maps, runs both programs on them, and shows the numbers."""
    options = parser(__doc__, score=False, make=False, seeds=(1, 2, 3))
    options.add_argument("--box", type=int, default=128)
    options.add_argument("--pixel", type=float, default=1.2)
    options.add_argument("--sampling", type=float, default=25.0)
    arguments = options.parse_args()
    truth = gradient(arguments.data[0], arguments.box, arguments.pixel)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            place = Path(folder) / str(seed)
            place.mkdir()
            write_halves(place, truth, arguments.pixel, seed)
            results.append({"seed": seed, "program": "instamap", **ours(place, truth)})
            if shutil.which("relion_postprocess"):
                numbers = relion(place, truth, arguments.pixel, arguments.sampling)
                results.append({"seed": seed, "program": "RELION", **numbers})
    rows = []
    for program in dict.fromkeys(result["program"] for result in results):
        own = [result for result in results if result["program"] == program]
        keys = ("resolution", "median", "correlation", "noise", "seconds", "local_seconds")
        values = [median(result[key] for result in own) for key in keys]
        memory = median(megabytes(result["rss"]) for result in own)
        rows.append([program, *values, memory])
    show(table(HEAD, rows))
    save(arguments.out, "postprocess", environment(), results, box=arguments.box)


def gradient(model: Path, box: int, pixel_size: float) -> Tensor:
    """A model's map "D D D" whose B-factor changes linearly along x."""
    atoms = atomic_model.read(model, 0.0)
    sharp = Potential(atoms, box, pixel_size, solvent=0.8).density().double()
    fine, coarse = (sharpening.sharpen(sharp, pixel_size, b_factor) for b_factor in B_FACTORS)
    reach = float((atoms.position - atoms.position.mean(0)).abs().max())
    along = grids.axis(box, pixel_size, dtype=torch.float64) / reach
    share = (0.5 + 0.5 * along).clamp(0, 1)
    return (1 - share) * fine + share * coarse


def write_halves(folder: Path, truth: Tensor, pixel_size: float, seed: int) -> None:
    """Half maps, a mask, and two maps of noise alone."""
    box = len(truth)
    generator = torch.Generator().manual_seed(1000 + seed)
    shell = round(box * pixel_size / 4)
    amplitude = float(sharpening.mean_amplitudes(truth)[shell])
    sigma = (NOISE * box**3) ** 0.5 * amplitude
    maps = []
    for number in (1, 2):
        noise = sigma * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
        maps.append(truth + noise)
        mrc.write(folder / f"half{number}.mrc", maps[-1], pixel_size)
        mrc.write(folder / f"noise_half{number}.mrc", noise, pixel_size)
    mean = 0.5 * (maps[0] + maps[1])
    mrc.write(folder / "mask.mrc", mask.from_map(mean.float(), pixel_size), pixel_size)


def ours(folder: Path, truth: Tensor) -> dict:
    """instamap's numbers; local resolution's time is what it adds to the rest."""
    command = [INSTAMAP, "postprocess", "half1.mrc", "half2.mrc", "--mask", "mask.mrc"]
    command += ["--b-factor", SHARPENING]
    plain = measure([*command, "--no-local", "-o", "plain"], folder)
    whole = measure([*command, "-o", "ours"], folder)
    record = read_json(folder / "ours" / "postprocess.json")
    window = record["local_resolution"]["window"]
    noise = [INSTAMAP, "postprocess", "noise_half1.mrc", "noise_half2.mrc"]
    measure([*noise, "--window", window, "-o", "noise"], folder)
    lowest = read_json(folder / "noise" / "postprocess.json")["local_resolution"]["lowest"]
    of_noise = folder / "noise" / "postprocess"
    found = _maps(folder / "ours" / "postprocess", of_noise, lowest, truth, folder)
    resolution = record["resolution"]
    local_seconds = whole.seconds - plain.seconds
    return {"resolution": resolution, **found, **_usage(whole), "local_seconds": local_seconds}


def relion(folder: Path, truth: Tensor, pixel_size: float, sampling: float) -> dict:
    """RELION's numbers."""
    base = ["relion_postprocess", "--angpix", pixel_size]
    halves = ["--i", "half1.mrc", "--i2", "half2.mrc"]
    noise = ["--i", "noise_half1.mrc", "--i2", "noise_half2.mrc"]
    local = ["--locres", "--locres_sampling", sampling, "--adhoc_bfac", SHARPENING]
    (folder / "relion").mkdir()
    words = ["--mask", "mask.mrc", "--adhoc_bfac", SHARPENING, "--o", "relion/post"]
    plain = measure([*base, *halves, *words], folder)
    locres = measure([*base, *halves, *local, "--o", "relion/post"], folder)
    measure([*base, *noise, *local, "--o", "relion/noise"], folder)
    of_noise = folder / "relion" / "noise"
    found = _maps(folder / "relion" / "post", of_noise, RELION_LOWEST, truth, folder)
    resolution = _number(plain.output, "FINAL RESOLUTION:")
    both = plain + locres
    return {"resolution": resolution, **found, **_usage(both), "local_seconds": locres.seconds}


def _maps(root: Path, noise: Path, lowest: float, truth: Tensor, folder: Path) -> dict:
    """What the maps of local resolution say, of the half maps and of noise."""
    inside = mrc.read(folder / "mask.mrc")[0] > 0.5
    resolution = mrc.read(root.with_name(f"{root.name}_locres.mrc"))[0]
    filtered = mrc.read(root.with_name(f"{root.name}_locres_filtered.mrc"))[0]
    of_noise = mrc.read(noise.with_name(f"{noise.name}_locres.mrc"))[0]
    stacked = torch.stack([filtered[inside].double(), truth[inside]])
    looked_at = of_noise > 0  # RELION leaves out what is near the edge
    better = of_noise[looked_at] < 0.999 * lowest
    return {
        "median": float(resolution[inside].median()),
        "correlation": float(torch.corrcoef(stacked)[0, 1]),
        "noise": float(better.double().mean()),
    }


def _usage(run: Run) -> dict:
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "rss": run.rss}


def _number(output: str, words: str) -> float:
    """The number that follows some words."""
    return float(output.split(words)[1].split()[0])


if __name__ == "__main__":
    main()
