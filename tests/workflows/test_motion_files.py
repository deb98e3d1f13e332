"""A motion among the files of a run: what is listed is what is written."""

from dataclasses import replace
from fnmatch import fnmatch

import torch
from support.bending import BOX, PIXEL, motion, shift

from instamap.maps import mask, mrc
from instamap.motion.domains import Domains, Placement
from instamap.motion.motion_model import MotionModel
from instamap.workflows.motion_files import PATTERNS, MotionFiles, domain_mask

LATENTS = torch.linspace(-1, 1, 11)[:, None]


def of_domains() -> MotionModel:
    """Two fits, each of a still and a moving domain with masks of its own."""
    nodes = torch.tensor([[0.0], [1.0]])
    placed = torch.zeros(2, 2, 3)
    placed[1, 1, 0] = 4.0
    placement = Placement(torch.eye(3).expand(2, 2, 3, 3).contiguous(), placed)
    made = motion([shift(0, 0, 0)], [shift(0, 0, 0)], latents=LATENTS)
    halves = []
    for number, half in enumerate(made.halves):
        radii = [10.0 + 4.0 * number, 18.0]
        masks = torch.stack([mask.sphere(BOX, PIXEL, radius, PIXEL) for radius in radii]).float()
        domains = Domains(masks, nodes, placement, PIXEL)
        halves.append(replace(half, domains=domains, densities=masks))
    return MotionModel(halves, LATENTS.double(), {})


def test_the_masks_of_domains_are_among_the_files(tmp_path):
    model = of_domains()
    files = MotionFiles(model, {"motion_found": True})
    files.write(tmp_path)
    assert sorted(files.files()) == sorted(path.name for path in tmp_path.iterdir())
    assert all(any(fnmatch(name, pattern) for pattern in PATTERNS) for name in files.files())
    for number, half in enumerate(model.halves):
        for m in range(2):
            volume, pixel_size = mrc.read(tmp_path / domain_mask(number, m))
            assert torch.equal(volume, half.domains.masks[m]) and pixel_size == PIXEL


def test_without_domains_there_are_no_masks(tmp_path):
    model = motion([shift(1, 0, 0)], latents=LATENTS)
    files = MotionFiles(model, {"motion_found": True})
    assert not [name for name in files.files() if "domain" in name]
