"""A plugin from its folder to the command line: installed, listed, described, tested by its own
tests, uninstalled, gone.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins" / "instamap-gaussians"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a new environment that has what this one has, except instamap and its
    plugins.

    Nothing is fetched: the packages that instamap depends on, pip and setuptools are links to this
    environment's, in a folder that a .pth file adds. Linking one by one leaves out every trace of
    instamap here, so what is found there was installed there.
    """
    if not importlib.util.find_spec("pip") or not importlib.util.find_spec("setuptools"):
        pytest.skip("pip and setuptools are needed to install without a network")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    links = folder / "links"
    links.mkdir()
    for place in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for entry in Path(place).iterdir():
            if not entry.name.startswith(("instamap", "__editable__", "__pycache__")):
                (links / entry.name).symlink_to(entry)
    found = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name
    run(
        found,
        "-c",
        "import sysconfig, pathlib; pathlib.Path(sysconfig.get_path('purelib'),"
        f" 'links.pth').write_text({str(links)!r})",
    )
    return found


def run(
    python: Path, *arguments, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess:
    """Run the interpreter in its own environment, not in that of these tests."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONPATH", "VIRTUAL_ENV") and not k.startswith(("INSTAMAP_", "PIP_"))
    }
    done = subprocess.run(
        [python, *arguments], cwd=cwd or python.parent, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0 or not check, (
        f"{arguments} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    )
    return done


def pip_install(python: Path, source: Path, folder: Path) -> None:
    """From a copy of the folder, since building leaves files behind."""
    ignore = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "plugins", "demo-out", "out"
    )
    copy = shutil.copytree(source, folder / source.name, ignore=ignore)
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        copy,
    )


def instamap(python: Path, *arguments, check: bool = True) -> subprocess.CompletedProcess:
    return run(python, "-c", "from instamap.cli import main; main()", *arguments, check=check)


def test_life_of_a_plugin(python, tmp_path):
    pip_install(python, ROOT, tmp_path)
    assert "gaussians" not in instamap(python, "parts").stdout

    pip_install(python, PLUGIN, tmp_path)
    listed = instamap(python, "parts", "--kind", "representation").stdout
    (row,) = [line.split() for line in listed.splitlines() if "instamap-gaussians" in line]
    assert row[:3] == ["representation", "gaussians", "instamap-gaussians"]
    assert "Broken" not in listed
    described = instamap(python, "describe", "representation", "gaussians").stdout
    assert "count" in described
    assert "instamap_gaussians.gaussians:Gaussians" in described

    tests = run(python, "-m", "pytest", tmp_path / PLUGIN.name, cwd=tmp_path / PLUGIN.name)
    assert "passed" in tests.stdout
    where = run(
        python,
        "-c",
        "import instamap_gaussians, instamap; print(instamap_gaussians.__file__,"
        " instamap.__file__)",
    ).stdout.split()
    assert all(Path(file).is_relative_to(python.parents[1]) for file in where)

    run(
        python,
        "-m",
        "pip",
        "uninstall",
        "--quiet",
        "--yes",
        "--disable-pip-version-check",
        "instamap-gaussians",
    )
    assert "gaussians" not in instamap(python, "parts").stdout
    missing = instamap(python, "describe", "representation", "gaussians", check=False)
    assert missing.returncode == 2
    assert "'gaussians' is unknown" in missing.stderr


def test_listing_does_not_import_torch(python, tmp_path):
    """The plugin's module, which every `instamap --help` imports, announces its parts without their
    dependencies.
    """
    run(
        python,
        "-c",
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(PLUGIN)!r}]; import instamap_gaussians as"
        " plugin; assert plugin.instamap_components(); assert 'torch' not in sys.modules",
    )


@pytest.mark.parametrize(
    ("name", "kind", "flags"),
    [
        ("ridge", "objective", ("--objective", "ridge", "-O", "steps=10")),
        ("inversion", "workflow", ("--workflow", "inversion", "-W", "steps=2")),
    ],
)
def test_a_plugin_with_another_kind(python, tmp_path, name, kind, flags):
    """Installed from its folder, it obeys the laws of its kind and runs by its name."""
    pip_install(python, ROOT, tmp_path)
    plugin = ROOT / "tests" / "plugins" / f"instamap-{name}"
    pip_install(python, plugin, tmp_path)
    assert name in instamap(python, "parts", "--kind", kind).stdout
    tests = run(python, "-m", "pytest", tmp_path / plugin.name, cwd=tmp_path / plugin.name)
    assert "passed" in tests.stdout
    instamap(python, "demo", "--rigid", "-o", tmp_path / "demo")
    star = tmp_path / "demo" / "particles.star"
    done = instamap(python, "reconstruct", star, "-o", tmp_path / "out", *flags)
    assert "maps and records" in done.stdout
    assert f'[{kind}]\nname = "{name}"' in (tmp_path / "out" / "run.toml").read_text()
