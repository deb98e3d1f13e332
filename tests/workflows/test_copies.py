"""Images that a STAR file lists several times, as symmetry expansion and joining do, are in one set
alone: noise agrees with itself.
"""

from pathlib import Path

import mrcfile
import pandas as pd
import pytest
import starfile
import torch
from support.command import OBJECTIVES, QUICK, instamap

from instamap.data import splits
from instamap.data.particles import Particles
from instamap.errors import DataError, OptionError
from instamap.simulate import particle_set
from instamap.statistics import noise_refinement
from instamap.workflows.settings import Settings

COUNT = 300
COPIES = 4


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """Noise, with poses and CTFs: each image once."""
    star = particle_set.demo(
        tmp_path_factory.mktemp("noise"), count=COUNT, box=16, pixel_size=6.0, snr=1.0
    )
    tables = starfile.read(star)
    tables["particles"] = tables["particles"].drop(columns="rlnRandomSubset")
    starfile.write(tables, star, overwrite=True)
    with mrcfile.new(star.with_name("particles.mrcs"), overwrite=True) as file:
        file.set_data(
            torch.randn(COUNT, 16, 16, generator=torch.Generator().manual_seed(3)).numpy()
        )
        file.set_image_stack()
    return star


def listed(once: Path, name: str, change=lambda table: table) -> Path:
    """A STAR file beside the stack that lists every image COPIES times."""
    tables = starfile.read(once)
    tables["particles"] = change(pd.concat([tables["particles"]] * COPIES, ignore_index=True))
    starfile.write(tables, once.with_name(name))
    return once.with_name(name)


def sets_of(star: Path, **given) -> dict[str, set[int]]:
    """The numbers of the images in each set."""
    particles = Particles.open(star)
    settings = Settings(star, **given)
    group = particles.exclusive_groups(settings.group_by)
    half = particles.split(settings.seed, settings.group_by) if settings.halves else None
    rows, held_out = splits.draw_sets(group, half, held_out=settings.held_out, seed=settings.seed)
    return {
        name: {row % COUNT for row in some.tolist()}
        for name, some in {**rows, "held_out": held_out}.items()
    }


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("group_by", [None, "rlnGroupName"])
def test_no_image_is_in_two_sets(once, halves, group_by):
    def names(table):
        return table.assign(rlnGroupName=[f"g{i % COUNT // 3}" for i in range(len(table))])

    sets = sets_of(listed(once, "expanded.star", names), halves=halves, group_by=group_by)
    assert sum(map(len, sets.values())) == COUNT == len(set().union(*sets.values()))
    assert len(sets["held_out"]) == 0.05 * COUNT


def test_images_and_groups_are_linked_from_row_to_row(once):
    """Copies in group a1 and b1 and so on: the blocks a1+b1, a2+b2, ... Spelt in another way, a
    file is still the same.
    """

    def change(table):
        block = [i % COUNT // 30 for i in range(len(table))]
        other = table["rlnImageName"].where(
            pd.Series(range(len(table))) < COUNT, table["rlnImageName"].str.replace("@", "@./")
        )
        return table.assign(
            rlnGroupName=[f"{'ab'[i >= COUNT]}{b}" for i, b in enumerate(block)], rlnImageName=other
        )

    star = listed(once, "joined.star", change)
    unit = Particles.open(star).exclusive_groups("rlnGroupName")
    assert unit.tolist() == [i % COUNT // 30 for i in range(COUNT * COPIES)]
    assert torch.equal(Particles.open(star).exclusive_groups(), torch.arange(COUNT).repeat(COPIES))
    sets = sets_of(star, group_by="rlnGroupName")
    assert (
        len({i // 30 for some in sets.values() for i in some})
        == 10
        == sum(len({i // 30 for i in some}) for some in sets.values())
    )


def test_sets_of_images_that_are_listed_once_are_what_they_were(once):
    """Drawn by row; and with them the maps of every earlier run."""
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    assert sets_of(once)["held_out"] == set(order[:15].tolist())
    assert torch.equal(Particles.open(once).exclusive_groups(), torch.arange(COUNT))


def test_a_random_subset_that_parts_an_image_is_refused(once, tmp_path):
    star = once.with_name("parted.star")
    good = listed(
        once,
        "subset.star",
        lambda table: table.assign(rlnRandomSubset=[1 + i % COUNT % 2 for i in range(len(table))]),
    )
    assert not sets_of(good)["half1"] & sets_of(good)["half2"]
    tables = starfile.read(good)
    tables["particles"].loc[COUNT + 6, "rlnRandomSubset"] = 2
    starfile.write(tables, star)
    line = instamap("reconstruct", star, "-o", tmp_path / "out", *QUICK).refusal
    assert (
        "has the image '000007@particles.mrcs' of row 7" in line
        and "in both halves" in line
        and "remove the column" in line
    )
    assert not (tmp_path / "out").exists()
    assert sum(map(len, sets_of(star, halves=False).values())) == COUNT, "one map needs no halves"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("representation", ["hash-grid", "voxel"])
def test_noise_that_is_listed_four_times_is_no_signal(once, tmp_path, seed, representation):
    """Parted, copies would be a perfect signal: the same noise in both halves and in what judges
    them.
    """
    words = ("--representation", representation, "--seed", seed, *OBJECTIVES["normal"])
    outcome = instamap("reconstruct", listed(once, "expanded.star"), "-o", tmp_path / "out", *words)
    assert outcome.code == 0 and outcome.out.count("no signal found") == 2, outcome.out


def test_maps_that_measure_the_noise_share_no_image(once, monkeypatch):
    star = listed(once, "expanded.star")
    seen = {}

    def accumulate(particles, rows, *more, **options):
        seen.update(rows)
        raise InterruptedError

    monkeypatch.setattr(noise_refinement, "accumulate", accumulate)
    particles = Particles.open(star)
    with pytest.raises(InterruptedError):
        noise_refinement.refine(
            particles,
            torch.arange(COUNT * COPIES),
            None,
            type("Scene", (), {"noise_variance": torch.ones(1, 9)}),
        )
    one, two = ({row % COUNT for row in seen[name].tolist()} for name in ("one", "two"))
    assert not one & two and len(one | two) == COUNT


# How many are held out


@pytest.mark.parametrize(("share", "count"), [(0.001, 3), (0.05, 15), (0.5, 150)])
def test_at_least_three_images_are_held_out(once, share, count):
    assert len(sets_of(once, held_out=share)["held_out"]) == count


def test_a_fit_without_held_out_images_is_refused(once):
    said = "held_out is 0.0; it must be a number from 0.001 to 0.9"
    with pytest.raises(OptionError, match=said):
        Settings(once, held_out=0.0)


def test_one_image_cannot_be_split(once, tmp_path):
    tables = starfile.read(once)
    tables["particles"] = pd.concat([tables["particles"].iloc[:1]] * 5)
    starfile.write(tables, once.with_name("one.star"))
    with pytest.raises(DataError, match="has only one image, which can't be split"):
        Particles.open(once.with_name("one.star")).split(0)
