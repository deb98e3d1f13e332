"""The demo: particles, a map, a motion and what to make of it, in folders that are told of."""

import pytest
import torch
from support.command import instamap

from instamap.cli import demo
from instamap.data.particles import Particles


@pytest.fixture
def small(monkeypatch):
    """A demo of fewer and coarser images."""
    monkeypatch.setattr(demo, "COUNT", 400)
    monkeypatch.setattr(demo, "BOX", 20)
    monkeypatch.setattr(demo, "PIXEL_SIZE", 6.5)
    monkeypatch.setattr(demo, "SNR", 1.0)
    monkeypatch.setattr(demo, "PATH_STATES", 3)


@pytest.mark.slow
def test_the_demo_finds_the_motion_that_it_made(small, tmp_path):
    out = tmp_path / "demo"
    done = instamap("demo", "-o", out)
    assert done.code == 0, done
    assert f"simulated particles in {out}/: particles.star, particles.mrcs, truth.mrc" in done.out
    for file in ("map/report.html", "motion/report.html", "states/movie.gif", "audit/audit.png"):
        assert (out / file).exists()
        assert file in done.out or file == "map/report.html"
    [line] = [line for line in done.out.splitlines() if demo.ANGLES in line]
    assert float(line.rpartition(" ")[2]) > 0.9
    angles = (out / demo.ANGLES).read_text().split()
    assert angles[0] == "degrees" and len(angles) == 401
    assert "instamap reconstruct particles.star --deform bending-field" in done.out
    for name in ("map", "motion", "states", "audit"):
        refused = instamap("demo", "-o", out)
        assert "already holds" in refused.refusal
        for file in (out / name).iterdir():
            file.unlink()
    assert "already holds a demo" in instamap("demo", "-o", out).refusal


def test_a_rigid_demo_is_a_map_alone(tmp_path):
    out = tmp_path / "demo"
    done = instamap("demo", "--rigid", "-o", out, "--seed", 3)
    assert done.code == 0, done
    particles = Particles.open(out / "particles.star")
    assert len(particles) == 600 and particles.box == 32
    assert not (out / demo.ANGLES).exists() and not (out / "motion").exists()
    assert "map/report.html" in done.out and "movie" not in done.out
    again = instamap("demo", "--rigid", "-o", out, "--force")
    assert again.code == 0, again
    changed = Particles.open(out / "particles.star")
    assert not torch.equal(changed.views.rotation, particles.views.rotation)
