"""The report is one page that holds everything, says what was found, and fetches nothing."""

import dataclasses
import gzip
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from support.finished import BOX, PIXEL, finished
from support.motions import save

from instamap.plugin.registry import Registry
from instamap.report import coordinates_plot, html, viewer

MAX_BYTES = 3_000_000


def page(result) -> str:
    return html.page(result, Registry({}, []))


def titles(text: str) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", text)


def test_it_has_all_sections_the_verdict_first():
    text = page(finished())
    assert re.search(r"<h1>([^<]*)</h1>", text).group(1) == "Resolution 9.00 Å"
    assert titles(text) == [
        "What was found",
        "Map in space",
        "Resolution",
        "Slices",
        "Held-out likelihood",
        "Directions of view",
        "Noise",
        "How it was made",
        "What to cite",
    ]
    assert len(text.encode()) < MAX_BYTES


def test_it_names_no_address_outside_but_those_of_links():
    text = page(finished())
    without_licence = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", without_licence)
    assert "default-src &#x27;none&#x27;" in text


def test_what_comes_from_outside_is_escaped():
    text = page(finished())
    assert "&lt;particles&gt;" in text and "<particles>" not in text


def test_without_signal_or_halves_there_is_less_to_see():
    usual = finished()
    lost = {name: dataclasses.replace(fit, signal=False) for name, fit in usual.fits.items()}
    text = page(finished(fits=lost, resolution=None))
    assert "Map in space" not in titles(text) and "No signal found" in text
    text = page(finished(fsc={}, resolution=None, rotations=None))
    assert "Resolution" not in titles(text) and "Directions of view" not in titles(text)


def unpacked(packed: viewer.PackedMap) -> np.ndarray:
    levels = np.frombuffer(gzip.decompress(b64decode(packed.text)), np.uint8)
    return levels.reshape(packed.shape) * (packed.high / 255)


def test_the_viewers_map_is_the_map():
    """At its places, to half a gray value, whether or not it was interpolated."""
    ball = finished().maps["map"]
    crop = viewer.Crop((2, 3, 4), (12, 13, 14))
    packed = viewer.pack(ball, crop, PIXEL, viewer.MAX_EDGE, viewer.MAP_BYTES)
    finer = round(PIXEL / packed.step[0])
    assert finer == 7 and packed.shape == [70, 70, 70]
    coarse = unpacked(packed)[::finer, ::finer, ::finer]
    given = ball[2:12, 3:13, 4:14].clamp(min=0).numpy()
    assert np.abs(coarse - given).max() < 0.51 * packed.high / 255
    assert packed.corner == pytest.approx([PIXEL * (start - BOX // 2) for start in (4, 3, 2)])


def test_a_large_map_becomes_smaller_about_its_place():
    volume = torch.zeros(200, 200, 200)
    volume[100, 110, 120] = 1.0
    packed = viewer.pack(volume, viewer.crop_to(torch.ones(200, 200, 200)), 1.0, 100, 10**7)
    assert packed.shape == [100, 100, 100] and packed.step == [2.0, 2.0, 2.0]
    z, y, x = np.argwhere(unpacked(packed) > 0)[0]
    places = [packed.corner[axis] + 2.0 * at for axis, at in enumerate((x, y, z))]
    assert np.abs(np.array(places) - [20, 10, 0]).max() <= 0.5


def test_text_that_is_too_long_gets_shorter():
    noise = torch.rand(40, 40, 40, generator=torch.Generator().manual_seed(0))
    whole = viewer.crop_to(torch.ones(40, 40, 40))
    packed = viewer.pack(noise, whole, 1.0, 40, 30_000)
    assert len(packed.text) <= 30_000 and packed.shape[0] < 40


def test_the_script_reads_what_the_viewer_packed():
    text = page(finished())
    [data] = re.findall(r'id="surface">(.*?)</script>', text, flags=re.DOTALL)
    surface = json.loads(data)
    assert 0 < surface["level"] < surface["maps"][0]["high"]


def test_conformations_move_in_one_frame(tmp_path):
    latents = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    motion = save(tmp_path, tmp_path / "particles.star", latents)
    surface = viewer.of_motion(motion, torch.tensor([[-0.8], [0.0], [0.8]]))
    first, middle, last = surface.maps
    assert first.corner == last.corner and first.high == middle.high
    assert first.text != last.text and surface.names[1] == "z1 = 0.00"


@pytest.mark.parametrize("coordinates", [1, 2])
def test_coordinates_without_directions_are_drawn(coordinates):
    latents = torch.randn(40, coordinates, generator=torch.Generator().manual_seed(0))
    assert coordinates_plot.drawn_alone(latents).axes
