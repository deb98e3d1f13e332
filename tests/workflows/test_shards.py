"""Statistics on disk: shards add up, interruptions and symmetry change nothing, and a fit needs no
images.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support.command import QUICK, correlation, instamap, maps

from instamap import checksums
from instamap.data.particles import Particles
from instamap.errors import DataError, OptionError, OutputError
from instamap.geometry.symmetry import point_group
from instamap.progress import Progress
from instamap.simulate import particle_set
from instamap.statistics import accumulator as accumulating
from instamap.statistics import streaming
from instamap.toml_text import write_toml
from instamap.workflows import output
from instamap.workflows.choose import resolve
from instamap.workflows.prepare import prepare
from instamap.workflows.settings import Settings
from instamap.workflows.shard import Shard, missing_share
from instamap.workflows.shards import accumulate, merge
from instamap.workflows.statistics_folder import SETS, StatisticsFolder

COUNT = 240
BOX = 16
PIXEL = 6.0
# The same few hundred terms are added in float32 (6e-8 each) in another order, and transformed once
# more.
ROUNDING = 1e-5
CHUNK = 8  # images at once in the tests of interruptions, of which two chunks fill the grid


@pytest.fixture(scope="module")
def star(tmp_path_factory) -> Path:
    return particle_set.demo(
        tmp_path_factory.mktemp("data"),
        count=COUNT,
        box=BOX,
        pixel_size=PIXEL,
        snr=1.0,
    )


@pytest.fixture(scope="module")
def whole(star, tmp_path_factory) -> StatisticsFolder:
    return accumulate(Settings(star), tmp_path_factory.mktemp("whole") / "stats")


@pytest.fixture(scope="module")
def thirds(star, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("thirds")
    return [accumulate(Settings(star), folder / str(i), shard=Shard(i, 3)).path for i in (1, 2, 3)]


def change(star: Path, folder: Path, **columns) -> Path:
    """The same images beside a STAR file with more columns."""
    tables = starfile.read(star)
    folder.mkdir(parents=True, exist_ok=True)
    tables["particles"] = tables["particles"].assign(**columns)
    starfile.write(tables, folder / "particles.star")
    shutil.copy(star.with_name("particles.mrcs"), folder)
    return folder / "particles.star"


def assert_alike(
    one: StatisticsFolder,
    other: StatisticsFolder,
    *,
    factor: float = 1.0,
    tolerance: float = ROUNDING,
    counts: bool = True,
) -> None:
    """Each set of `one` is `factor` times that of `other`, in relative L2 norm."""
    for name in SETS:
        a = one.statistics(name)
        b = other.statistics(name)
        for field in ("b", "kernel"):
            found = getattr(a, field).double()
            wanted = factor * getattr(b, field).double()
            assert (found - wanted).norm() <= tolerance * wanted.norm(), (name, field)
        assert a.count == b.count or not counts
        assert (a.weight, a.energy) == pytest.approx(
            (factor * b.weight, factor * b.energy), rel=max(tolerance, 1e-12)
        )


# Shards


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_shards_meet_where_they_share_rows(i, n, j, m):
    one = Shard(min(i, n), max(i, n))
    two = Shard(min(j, m), max(j, m))
    rows = torch.arange(144)
    assert one.meets(two) == two.meets(one) == bool((one.holds(rows) & two.holds(rows)).any())
    assert Shard.parse(str(one)) == one


def test_merged_shards_are_the_whole(whole, thirds, tmp_path):
    found = merge(thirds, tmp_path / "stats")
    assert_alike(found, whole)
    assert found.shards == whole.shards == [Shard(1, 1)]
    assert {path.name for path in found.path.iterdir()} == {
        path.name for path in whole.path.iterdir()
    }
    assert (found.path / "accumulate.toml").read_text() == (
        whole.path / "accumulate.toml"
    ).read_text()
    assert (thirds[0] / "half1-1of3.npz").exists()


def test_shards_of_different_sizes_merge_in_steps(star, whole, tmp_path):
    paths = [
        accumulate(Settings(star), tmp_path / f"{i}of{n}", shard=Shard(i, n)).path
        for i, n in ((1, 2), (2, 4), (4, 4))
    ]
    part = merge(paths[:2], tmp_path / "part")
    assert [str(shard) for shard in part.shards] == ["1/2", "2/4"]
    assert missing_share(part.shards) == Fraction(1, 4)
    assert_alike(merge([part.path, paths[2]], tmp_path / "all"), whole)


def test_noise_and_sets_do_not_depend_on_the_shard(whole, thirds):
    for path in thirds:
        folder = StatisticsFolder.open(path)
        assert torch.equal(folder.scene.noise_variance, whole.scene.noise_variance)
    assert all(
        sum(StatisticsFolder.open(path).counts[name] for path in thirds) == whole.counts[name]
        for name in SETS
    )


def test_more_shards_than_particles_of_a_set(star, tmp_path):
    folder = accumulate(Settings(star), tmp_path / "stats", shard=Shard(3, COUNT))
    assert sorted(folder.counts.values()) == [0, 0, 1]
    assert sum(folder.statistics(name).count for name in SETS) == 1


# Symmetry and weights


def test_symmetry_is_that_of_expanded_particles(star, tmp_path):
    """Each particle at all poses that show the same image, with weights 1/S. Its copies share a
    name, and so a set.
    """
    tables = starfile.read(star)
    table = tables["particles"]
    group = point_group("D2")
    names = [f"rlnAngle{word}" for word in ("Rot", "Tilt", "Psi")]
    views = Particles.open(star).views.rotation
    mates = []
    for turn in group:
        angles = Rotation.from_matrix((views @ turn).mT.numpy()).as_euler("ZYZ", degrees=True)
        columns = {
            **dict(zip(names, angles.T, strict=True)),
            "weight": 1 / len(group),
            "rlnMicrographName": table["rlnImageName"],
        }
        mates.append(table.assign(**columns))
    tables["particles"] = pd.concat(mates)
    starfile.write(tables, tmp_path / "particles.star")
    shutil.copy(star.with_name("particles.mrcs"), tmp_path)
    expanded = Settings(tmp_path / "particles.star", weights="weight", group_by="rlnMicrographName")
    found = accumulate(Settings(star, symmetry="D2"), tmp_path / "found")
    assert_alike(found, accumulate(expanded, tmp_path / "expanded"), counts=False)


def test_weights_scale(star, whole, tmp_path):
    three = change(star, tmp_path / "data", weight=3.0)
    assert_alike(
        accumulate(Settings(three, weights="weight"), tmp_path / "stats"), whole, factor=3.0
    )


def test_particles_of_no_weight_do_not_count(star, thirds, tmp_path):
    third = change(star, tmp_path / "data", weight=[float(i % 3 == 1) for i in range(COUNT)])
    assert_alike(
        accumulate(Settings(third, weights="weight"), tmp_path / "stats"),
        StatisticsFolder.open(thirds[1]),
        counts=False,
    )


@pytest.mark.slow
def test_a_symmetric_fit_is_symmetric_as_far_as_it_is_free(star, tmp_path):
    """The statistics are symmetric; the field, its random start and the jitter are not, so that the
    map is nearly so.
    """
    outcome = instamap(
        "reconstruct",
        star,
        "-o",
        tmp_path / "out",
        "--symmetry",
        "c4",
        "--representation",
        "voxel",
        "-O",
        "steps=60",
        "--objective",
        "normal",
    )
    assert outcome.code == 0 and "symmetry        C4" in outcome.err
    assert tomllib.loads((tmp_path / "out" / "run.toml").read_text())["symmetry"] == "C4"
    found = maps(tmp_path / "out")
    turned = found["map"].rot90(1, (1, 2)).roll(1, 1)  # about voxel D // 2
    inside = (found["mask"] > 0.5) & (found["mask"].rot90(1, (1, 2)).roll(1, 1) > 0.5)
    assert 0.95 < correlation(found["map"], turned, inside) < 1


# Interruptions


@pytest.fixture
def small_steps(monkeypatch):
    """State is kept every two chunks."""
    monkeypatch.setattr(streaming, "CHUNK_PIXELS", CHUNK * BOX**2)
    monkeypatch.setattr(accumulating, "FLUSH", 2 * CHUNK)


class Interruption(Progress):
    """Ctrl-C, once so many images have been read."""

    def __init__(self, after: int) -> None:
        self.after = after

    def images_read(self, done: int, total: int) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


class ImagesRead(Progress):
    """The number of images that have been read."""

    def __init__(self) -> None:
        self.count = 0

    def images_read(self, done: int, total: int) -> None:
        self.count = done


def interrupted(settings: Settings, out: Path, after: int, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        accumulate(settings, out, progress=Interruption(after), **options)


def resumed(settings: Settings, out: Path, **options) -> tuple[StatisticsFolder, int]:
    """The folder and how many images were read."""
    read = ImagesRead()
    folder = accumulate(settings, out, progress=read, **options)
    return folder, read.count


@pytest.mark.parametrize("after", [1, 40, 130, COUNT])
def test_interrupted_accumulation_resumes(star, tmp_path, small_steps, after):
    settings = Settings(star)
    expected = accumulate(settings, tmp_path / "expected")
    interrupted(settings, tmp_path / "stats", after)
    with pytest.raises(DataError, match="are unfinished; run the command that began them again"):
        StatisticsFolder.open(tmp_path / "stats")
    found, read = resumed(settings, tmp_path / "stats")
    assert_alike(found, expected, tolerance=0)  # the same sums in the same order
    assert COUNT - after <= read <= COUNT - after + 3 * CHUNK
    assert {path.name for path in found.path.iterdir()} == {
        path.name for path in expected.path.iterdir()
    }
    assert resumed(settings, tmp_path / "stats")[1] == 0  # all is done


def test_interrupted_twice_with_symmetry_weights_and_shard(star, tmp_path, small_steps):
    data = change(star, tmp_path / "data", weight=[1 + i / COUNT for i in range(COUNT)])
    settings = Settings(data, symmetry="C2", weights="weight")
    options = {"shard": Shard(1, 2)}
    for after in (30, 50):
        interrupted(settings, tmp_path / "stats", after, **options)
    found, read = resumed(settings, tmp_path / "stats", **options)
    assert 0 < read < COUNT // 2 - 60
    assert_alike(found, accumulate(settings, tmp_path / "expected", **options), tolerance=0)


@pytest.mark.slow
def test_killed_accumulation_resumes(star, tmp_path, small_steps):
    script = f"""
import os, signal
from pathlib import Path
from instamap.progress import Progress
from instamap.statistics import accumulator, streaming
from instamap.workflows import shards
from instamap.workflows.settings import Settings
streaming.CHUNK_PIXELS, accumulator.FLUSH = {CHUNK * BOX**2}, {2 * CHUNK}
class Kill(Progress):
    def images_read(self, done, total):
        if done >= 130:
            os.kill(os.getpid(), signal.SIGKILL)
settings = Settings(Path({str(star)!r}))
shards.accumulate(settings, Path({str(tmp_path / "stats")!r}), progress=Kill())
"""
    surroundings = {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run([sys.executable, "-c", script], env=surroundings)
    assert done.returncode == -signal.SIGKILL
    found, read = resumed(Settings(star), tmp_path / "stats")
    assert 0 < read <= COUNT - 130 + 3 * CHUNK
    assert_alike(found, accumulate(Settings(star), tmp_path / "expected"), tolerance=0)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"symmetry": "C3"}, {"held_out": 0.1}, {"group_by": "rlnImageName"}]
)
def test_other_settings_do_not_resume(star, tmp_path, small_steps, change):
    settings = Settings(star)
    out = tmp_path / "stats"
    interrupted(settings, out, 60)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = replace(settings, **change)
    with pytest.raises(OutputError, match=next(iter(change))):
        accumulate(other, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    found, read = resumed(other, out, force=True)
    assert read == COUNT
    assert_alike(found, accumulate(other, tmp_path / "expected"), tolerance=0)


# Merging


def test_shards_that_share_images_are_not_merged(star, thirds, tmp_path):
    half = accumulate(Settings(star), tmp_path / "half", shard=Shard(1, 2)).path
    for pair in ([thirds[0], half], [thirds[1], thirds[1]]):
        line = instamap("merge", *pair, "-o", tmp_path / "stats").refusal
        assert f"'{pair[0]}' and '{pair[1]}' cannot be merged: shards" in line
    assert not (tmp_path / "stats").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 and 1"),
        ({"symmetry": "C3"}, "symmetry is C1 and C3"),
        ({"held_out": 0.1}, "held_out is 0.05 and 0.1"),
        ({"group_by": "rlnImageName"}, "group_by is None and rlnImageName"),
    ],
)
def test_other_settings_are_not_merged(star, thirds, tmp_path, change, said):
    other = accumulate(
        replace(Settings(star), **change), tmp_path / "other", shard=Shard(2, 3)
    ).path
    line = instamap("merge", thirds[0], other, "-o", tmp_path / "stats").refusal
    assert (
        f"'{thirds[0]}' and '{other}' cannot be merged: {said}" in line
        and not (tmp_path / "stats").exists()
    )


def test_other_particles_are_not_merged(thirds, tmp_path):
    for i, (name, size) in enumerate(
        {"box": (18, PIXEL), "pixel_size": (BOX, 7.0), "STAR": (BOX, PIXEL)}.items()
    ):
        star = particle_set.demo(
            tmp_path / str(i), count=60, box=size[0], pixel_size=size[1], seed=5
        )
        other = accumulate(Settings(star), tmp_path / f"stats{i}", shard=Shard(2, 3)).path
        line = instamap("merge", thirds[0], other, "-o", tmp_path / "stats").refusal
        assert f"'{thirds[0]}' and '{other}' cannot be merged: " in line and (
            name != "STAR" or "their STAR files differ" in line
        )
    assert not (tmp_path / "stats").exists()


def rewrite_record(folder: Path, text: str) -> None:
    """Another accumulate.toml, with its checksum."""
    values = tomllib.loads(text)
    del values["sha256"]
    write_toml(folder / "accumulate.toml", {**values, "sha256": checksums.of_values(values)})


def test_a_record_that_was_changed_is_refused(thirds, tmp_path):
    other = shutil.copytree(thirds[1], tmp_path / "other")
    text = (other / "accumulate.toml").read_text()
    (other / "accumulate.toml").write_text(text.replace("seed = 0", "seed = 1"))
    line = instamap("merge", thirds[0], other, "-o", tmp_path / "stats").refusal
    assert f"'{other / 'accumulate.toml'}' is not as it was written (its checksum differs)" in line


def test_a_bit_that_flipped_in_statistics_is_noticed_and_they_can_be_gathered_again(
    star, whole, tmp_path
):
    """Also where the archive's own checksums fit."""
    stats = shutil.copytree(whole.path, tmp_path / "stats")
    with np.load(stats / "half1.npz") as file:
        arrays = dict(file)
    arrays["b"][3, 4, 5] *= 2
    np.savez(stats / "half1.npz", **arrays)
    line = instamap("fit", stats, "-o", tmp_path / "out", *QUICK).refusal
    assert "half1.npz' is not a whole file of statistics: its checksum differs" in line
    found, read = resumed(Settings(star), stats)
    assert read == whole.counts["half1"]
    assert_alike(found, whole, tolerance=0)


def test_shards_are_merged_to_the_same_bits_in_any_order(thirds, tmp_path):
    outcomes = []
    for number, order in enumerate(itertools.permutations(thirds)):
        out = tmp_path / str(number)
        assert instamap("merge", *order, "-o", out).code == 0
        outcomes.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert all(one == outcomes[0] for one in outcomes)


def test_other_noise_is_not_merged(thirds, tmp_path):
    other = shutil.copytree(thirds[1], tmp_path / "other")
    said = (other / "accumulate.toml").read_text()
    first = tomllib.loads(said)["noise_variance"][0][0]
    for factor, alike in (
        (1.001, False),
        (1 + 1e-7, True),
    ):  # another machine's rounding is let through
        rewrite_record(other, said.replace(repr(first), repr(first * factor), 1))
        outcome = instamap("merge", thirds[0], other, "-o", tmp_path / "stats")
        assert outcome.code == 0 if alike else "their noise differs" in outcome.refusal


def test_statistics_may_be_merged_from_another_place(thirds, tmp_path):
    moved = shutil.copytree(thirds[1], tmp_path / "moved")
    said = (moved / "accumulate.toml").read_text()
    rewrite_record(moved, said.replace('particles = "/', 'particles = "/elsewhere/'))
    outcome = instamap("merge", thirds[0], moved, "-o", tmp_path / "stats")
    assert outcome.code == 0 and "shards of 33.3% of the images are missing" in outcome.out


# Fits


@pytest.mark.parametrize(
    "words", [(), ("--representation", "voxel", "--seed", "4")], ids=["hash-grid", "voxel"]
)
def test_fit_is_the_reconstruction_without_the_images(star, tmp_path, words):
    """Bit for bit: the same code sees the same numbers. A seed that is given to both draws other
    sets, too.
    """
    shutil.copytree(star.parent, tmp_path / "data")
    moved = tmp_path / "data" / "particles.star"
    assert instamap("reconstruct", moved, "-o", tmp_path / "one", *QUICK, *words).code == 0
    assert instamap("accumulate", moved, "-o", tmp_path / "stats", *words[2:]).code == 0
    shutil.rmtree(tmp_path / "data")
    outcome = instamap("fit", tmp_path / "stats", "-o", tmp_path / "two", *QUICK, *words)
    assert (
        outcome.code == 0
        and f"{moved}: {COUNT} images" in outcome.err
        and "held out 12" in outcome.err
    )
    assert (
        instamap(
            "reconstruct", "--config", tmp_path / "two" / "run.toml", "-o", tmp_path / "three"
        ).code
        == 0
    )
    for name in ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.csv"):
        expected = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == expected, name
        assert (tmp_path / "three" / name).read_bytes() == expected, name


def test_fit_of_merged_shards_and_in_a_mask(thirds, whole, tmp_path):
    merge(thirds, tmp_path / "stats")
    for name, folder in (("one", whole.path), ("two", tmp_path / "stats")):
        assert instamap("fit", folder, "-o", tmp_path / name, *QUICK).code == 0
    one = maps(tmp_path / "one")
    two = maps(tmp_path / "two")
    # Five steps of Adam, whose step is nearly the gradient's sign, amplify the rounding of the
    # statistics.
    assert (one["map"] - two["map"]).norm() < 1e-2 * one["map"].norm()
    outcome = instamap(
        "fit", whole.path, "-o", tmp_path / "three", *QUICK, "--mask", tmp_path / "one" / "mask.mrc"
    )
    assert outcome.code == 0 and torch.equal(maps(tmp_path / "three")["half1"], one["half1"])


def test_one_map_of_both_halves(whole):
    settings = replace(whole.settings, halves=False)
    prepared = prepare(resolve(settings))
    assert list(prepared.fits) == ["map"] and prepared.particles is None
    assert prepared.counts == {"map": 228, "held_out": 12}


def test_one_map_by_the_command(whole, tmp_path):
    outcome = instamap("fit", whole.path, "-o", tmp_path / "out", *QUICK, "--no-halves")
    assert (
        outcome.code == 0
        and "map 228, held out 12" in outcome.err
        and not (tmp_path / "out" / "half1.mrc").exists()
    )


def test_settings_that_the_statistics_contradict_are_refused(whole):
    for change in (
        {"symmetry": "C2"},
        {"weights": "w"},
        {"held_out": 0.5},
        {"particles": Path("other.star")},
    ):
        with pytest.raises(
            OptionError, match=f"{next(iter(change))} is .* were gathered with .*; accumulate again"
        ):
            prepare(resolve(replace(whole.settings, **change)))


# What is refused at the command line: one line, code 2, nothing written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard", "0/4"], "shard '0/4' does not exist"),
        (["--shard", "5/4"], "shard '5/4' does not exist"),
        (["--shard", "3"], "shard '3' cannot be read; write two whole numbers, such as 3/16"),
        (["--symmetry", "Q"], "symmetry 'Q' is unknown"),
        (["--held-out", "1.5"], "held_out is 1.5"),
        (["--weights", "rlnNone"], "has no column rlnNone"),
        (["--weights", "rlnOriginXAngst"], "it must be a number of at least 0"),
        (["--weights", "rlnPhaseShift"], "is 0 for all"),
        (["--likelihood", "correlation"], "Correlation is not Gaussian"),
        (["-L", "sigma=3"], "sigma"),
        (["--group-by", "rlnNone"], "rlnNone"),
    ],
)
def test_accumulate_refuses(star, tmp_path, words, said):
    assert said in instamap("accumulate", star, "-o", tmp_path / "stats", *words).refusal
    assert not list(tmp_path.iterdir())


def test_fit_refuses_what_it_has_no_images_for(whole, tmp_path):
    line = instamap("fit", whole.path, "-o", tmp_path / "out", "--objective", "images").refusal
    assert "objective 'images': it needs images, and the statistics in" in line
    assert "hold none" in line
    line = instamap("fit", tmp_path, "-o", tmp_path / "out").refusal
    assert "holds no statistics" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--symmetry", "C2"), ("--weights", "rlnDefocusU")])
def test_mini_batches_know_no_symmetry_or_weights(star, tmp_path, words):
    out = tmp_path / "out"
    line = instamap("reconstruct", star, "-o", out, "--objective", "images", *words).refusal
    name = words[0][2:]
    said = f"objective 'images': it knows no {name}, and {name} is '{words[1]}'; leave it out"
    assert said in line and not out.exists()


def test_damaged_folders_are_refused(whole, tmp_path):
    broken = shutil.copytree(whole.path, tmp_path / "broken")

    def refusal():
        return instamap("fit", broken, "-o", tmp_path / "out", *QUICK).refusal

    said = (broken / "accumulate.toml").read_text()
    for text in (
        said.replace("noise_variance", "noise"),
        said.replace("[sets]", "[set]"),
        said.replace('["1/1"]', "[]"),
        "box = ",
    ):
        (broken / "accumulate.toml").write_text(text)
        assert f"'{broken / 'accumulate.toml'}'" in refusal()
    (broken / "accumulate.toml").write_text(said)
    shutil.copy(broken / "held_out.npz", broken / "half1.npz")
    assert "put back the file" in refusal()
    (broken / "half1.npz").unlink()
    assert "do not exist" in refusal()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("held_out", '"b"', "damaged: held_out is 'b'; it must be a number from 0.001 to 0.9"),
        ("image_box", '"32"', "'image_box' is '32', which is no int"),
        ("image_box", "true", "'image_box' is True, which is no int"),
        ("pixel_size", "[6.0]", "'pixel_size' is [6.0], which is no float"),
        ("premultiplied", "0", "'premultiplied' is 0, which is no bool"),
        ("seed", "1.5", "damaged: seed is 1.5; it must be a whole number from 0 to 2147483647"),
        ("particles", "3", "damaged: particles is 3; it must be a path"),
        ("noise_variance", '"x"', "'noise_variance' is 'x', which is no list"),
        ("noise_variance", '[["x"]]', "damaged"),
        ("shards", "[1]", "damaged"),
        ("half2", '"many"', "'half2' in the table sets is 'many'"),
        ("digest", None, "'digest' is missing"),
    ],
)
def test_wrong_types_in_the_record_are_refused_in_a_line(whole, tmp_path, key, text, said):
    broken = shutil.copytree(whole.path, tmp_path / "broken")
    other = tmp_path / "out"
    lines = (broken / "accumulate.toml").read_text().splitlines()
    [number, *_] = [i for i, line in enumerate(lines) if line.startswith(f"{key} = ")]
    lines[number] = "" if text is None else f"{key} = {text}"
    (broken / "accumulate.toml").write_text("\n".join(lines) + "\n")
    for words in (("fit", broken, "-o", other, *QUICK), ("merge", broken, "-o", other)):
        line = instamap(*words).refusal
        assert f"'{broken / 'accumulate.toml'}'" in line and said in line
    assert not other.exists()


def test_an_unknown_word_in_the_record_is_refused(whole, tmp_path):
    broken = shutil.copytree(whole.path, tmp_path / "broken")
    (broken / "accumulate.toml").write_text(
        "novel = 1\n" + (broken / "accumulate.toml").read_text()
    )
    assert "'novel' is unknown" in instamap("fit", broken, "-o", tmp_path / "out").refusal


@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_files_that_are_missing_are_written_again(star, whole, tmp_path, fault):
    stats = shutil.copytree(whole.path, tmp_path / "stats")
    if fault == "gone":
        (stats / "half2.npz").unlink()
    else:
        (stats / "half2.npz").write_bytes((stats / "half2.npz").read_bytes()[:-100])
    found, read = resumed(Settings(star), stats)
    assert read == whole.counts["half2"]
    assert_alike(found, whole, tolerance=0)
    assert {path.name for path in stats.iterdir()} == {path.name for path in whole.path.iterdir()}


def test_merged_files_that_are_missing_are_written_again(thirds, whole, tmp_path):
    merge(thirds, tmp_path / "stats")
    (tmp_path / "stats" / "held_out.npz").unlink()
    assert_alike(merge(thirds, tmp_path / "stats"), whole)


def test_a_file_is_no_folder(star, tmp_path):
    (tmp_path / "stats").write_text("")
    assert (
        "is a file; name a folder" in instamap("accumulate", star, "-o", tmp_path / "stats").refusal
    )


# The folder: held by one, nothing foreign goes, and what is replaced stays until the end


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_accumulation_in_one_folder_is_refused_at_once(star, whole, tmp_path, small_steps):
    out = tmp_path / "stats"
    lines = []

    class Second(Progress):
        """Runs the same command, and merges there, while the first one is at work."""

        def images_read(self, done: int, total: int) -> None:
            if not lines:
                lines.append(instamap("accumulate", star, "-o", out).refusal)
                lines.append(instamap("merge", whole.path, "-o", out).refusal)

    found = accumulate(Settings(star), out, progress=Second())
    for line in lines:
        assert f"output folder '{out}' is being written by process {os.getpid()}" in line
    assert_alike(found, accumulate(Settings(star), tmp_path / "expected"), tolerance=0)
    assert sorted(contents(out)) == [
        "accumulate.toml",
        "half1.npz",
        "half2.npz",
        "held_out.npz",
    ]


@pytest.mark.parametrize("name", ["half1.npz", "held_out-2of3.npz", "half2-merged.npz"])
def test_foreign_files_are_not_replaced(star, whole, tmp_path, name):
    out = tmp_path / "stats"
    out.mkdir()
    (out / name).write_bytes(b"of somebody")
    for words in (("accumulate", star), ("merge", whole.path)):
        for force in ((), ("--force",)):
            line = instamap(*words, "-o", out, *force).refusal
            assert f"has a file '{name}' that statistics would replace" in line
    assert contents(out) == {name: b"of somebody"}


def test_forced_statistics_of_another_shard_leave_none_of_the_old(star, thirds, tmp_path):
    out = shutil.copytree(thirds[0], tmp_path / "stats")
    (out / "notes.txt").write_text("of somebody")
    accumulate(Settings(star), out, shard=Shard(2, 3), force=True)
    assert contents(out) == {**contents(thirds[1]), "notes.txt": b"of somebody"}


def test_interrupted_replacement_leaves_what_was_there(star, whole, tmp_path, small_steps):
    out = shutil.copytree(whole.path, tmp_path / "stats")
    interrupted(Settings(star, seed=1), out, 130, force=True)
    assert contents(out) == contents(whole.path)


def test_a_replacement_that_was_killed_as_it_moved_is_ended_by_the_next(star, whole, tmp_path):
    out = shutil.copytree(whole.path, tmp_path / "stats")
    new = accumulate(Settings(star, seed=1), tmp_path / "new")
    shutil.copytree(new.path, out / output.READY)
    (out / output.READY / "half1.npz").replace(out / "half1.npz")
    with pytest.raises(DataError, match="are being replaced; wait for it or, where that was"):
        StatisticsFolder.open(out)
    assert resumed(Settings(star, seed=1), out)[1] == 0
    assert contents(out) == contents(new.path)
