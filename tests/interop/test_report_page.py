"""The report in a browser: it shows the map, does what its controls say, and anybody can use it."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.browser import chromium, open_report, wait_for
from support.finished import finished
from support.motions import save

from instamap.plugin.registry import Registry
from instamap.report import html
from instamap.workflows.motion import MotionResult

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
INPUT = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"

pytestmark = pytest.mark.slow


def moving(folder: Path) -> MotionResult:
    """A result whose two blobs move apart."""
    latents = torch.linspace(-1, 1, 80, dtype=torch.float64)[:, None]
    motion = save(folder / "motion", folder / "particles.star", latents)
    usual = finished()
    values = {name: getattr(usual, name) for name in type(usual).__dataclass_fields__}
    gains = {"half1": 5.0, "half2": 4.0}
    return MotionResult(
        **values,
        motion=motion,
        moving=True,
        description="bending",
        closed=False,
        regions=[],
        gains=gains,
        agreement=0.9,
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The reports of a map and of a motion."""
    folder = tmp_path_factory.mktemp("reports")
    results = {"map": finished(), "motion": moving(folder)}
    files = {name: folder / f"{name}.html" for name in results}
    for name, result in results.items():
        html.write(files[name], result, Registry({}, []))
    return files


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def picture(browser) -> np.ndarray:
    """What the viewer shows, as "H W 3" in 0..255."""
    png = browser.find_element("id", "scene").screenshot_as_png
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The share of pixels that differ clearly."""
    return float((np.abs(one - other).max(-1) > 20).mean())


def inside(shown: np.ndarray) -> np.ndarray:
    """A picture without the frame around what is focused."""
    return shown[9:-9, 9:-9]


@pytest.mark.parametrize("name", ["map", "motion"])
def test_the_map_is_seen_and_the_console_is_silent(name, browser, pages):
    open_report(browser, pages[name])
    shown = picture(browser)
    background = shown[5, 5]
    covered = (np.abs(shown - background).max(-1) > 20).mean()
    assert 0.003 < covered < 0.7
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_the_level_changes_the_surface(browser, pages):
    open_report(browser, pages["map"])
    before = picture(browser)
    browser.execute_script(INPUT, browser.find_element("id", "level"), "900")
    wait_for(lambda: difference(before, picture(browser)) > 0.01)
    assert "kDa" in browser.find_element("id", "level-words").text


def test_the_map_turns_by_the_keyboard_and_comes_back(browser, pages):
    from selenium.webdriver.common.keys import Keys

    open_report(browser, pages["motion"])
    # an end of the motion, since a ball in the middle looks the same from everywhere
    browser.execute_script(INPUT, browser.find_element("id", "state"), "0")
    before = picture(browser)
    scene = browser.find_element("id", "scene")
    scene.send_keys(Keys.ARROW_LEFT * 5)
    wait_for(lambda: difference(inside(before), inside(picture(browser))) > 0.001)
    browser.find_element("id", "reset").click()
    wait_for(lambda: difference(inside(before), inside(picture(browser))) < 0.0002)


def test_conformations_move_and_play(browser, pages):
    open_report(browser, pages["motion"])
    state = browser.find_element("id", "state")
    browser.execute_script(INPUT, state, "0")
    first = picture(browser)
    browser.execute_script(INPUT, state, "8")
    wait_for(lambda: difference(first, picture(browser)) > 0.005)
    browser.find_element("id", "play").click()
    wait_for(lambda: state.get_property("value") in ("4", "5"))
    browser.find_element("id", "play").click()
    assert browser.find_element("id", "play").get_attribute("aria-pressed") == "false"


def test_light_becomes_dark_and_so_does_the_scene(browser, pages):
    open_report(browser, pages["map"])
    light = picture(browser)[5, 5].sum()
    browser.find_element("id", "theme").click()
    wait_for(lambda: picture(browser)[5, 5].sum() < light - 300)


def test_nothing_is_fetched(browser, pages):
    open_report(browser, pages["motion"])
    fetched = "return performance.getEntriesByType('resource').map((one) => one.name)"
    names = browser.execute_script(fetched)
    assert [name for name in names if not name.startswith(("data:", "blob:"))] == []


@pytest.mark.parametrize("name", ["map", "motion"])
def test_axe_finds_no_fault(name, browser, pages, tmp_path):
    source = axe(tmp_path)
    open_report(browser, pages[name])
    browser.execute_script(source)
    run = "const done = arguments[0]; axe.run().then(done)"
    for _ in range(2):  # light, dark
        found = browser.execute_async_script(run)["violations"]
        words = [f"{one['impact']}: {one['help']}" for one in found]
        assert [one for one in words if one.startswith(("serious", "critical"))] == []
        browser.find_element("id", "theme").click()


def axe(folder: Path) -> str:
    """axe-core, from node_modules or from the registry of npm."""
    if AXE.exists():
        return AXE.read_text(encoding="utf-8")
    if shutil.which("npm") is None:
        pytest.skip("needs axe-core: `npm install axe-core`, or npm to fetch it")
    command = ["npm", "pack", "axe-core@4", "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, cwd=folder, timeout=120)
    archives = list(folder.glob("axe-core-*.tgz"))
    if done.returncode or not archives:
        pytest.skip("axe-core cannot be fetched from the registry of npm")
    shutil.unpack_archive(archives[0], folder)
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")
