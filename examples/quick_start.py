"""A map from particles: reconstruct, look, save, load. It takes a few seconds.

The particles are made up; a STAR file of RELION 3.0 or later takes their place.

    python examples/quick_start.py [FOLDER]

It prints, with other numbers, what came out, and draws FOLDER/run/map.png and FOLDER/run/fsc.png:

    600 particles of 40 pixels at 4 Å
    half1: step 60 was the best, 14.8 nats per held-out image beyond an empty map
    half2: step 50 was the best, 14.7 nats per held-out image beyond an empty map
    the maps agree to 9.4 Å
    verdict: resolution 9.38 Å
    saved: SHA256SUMS, fsc.csv, fsc.png, half1.mrc, half2.mrc, held_out.png, log.jsonl, ...
    loaded: resolution 9.38 Å
"""

import sys
import tempfile
from pathlib import Path

import instamap
from instamap.simulate.particle_set import demo


def main(folder: Path) -> None:
    star = demo(folder / "particles", box=40, pixel_size=4.0, snr=0.02)
    run = instamap.reconstruct(star, objective=("normal", {"steps": 60}), seed=1)
    scene = run.scene
    print(f"{scene.count} particles of {scene.box} pixels at {scene.pixel_size:g} Å")
    for name, evaluations in run.evaluations.items():
        best = max(evaluations, key=lambda evaluation: evaluation.held_out)
        gain = f"{best.held_out:.1f} nats per held-out image beyond an empty map"
        print(f"{name}: step {best.step} was the best, {gain}")
    if run.resolution is not None:  # None where there is no signal
        print(f"the maps agree to {run.resolution:.1f} Å")
    print("verdict:", run.verdict)
    run.save(folder / "run")  # nothing was written before
    print("saved:", ", ".join(sorted(run.files())))
    loaded = instamap.load(folder / "run")
    print("loaded:", loaded.verdict)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()))
