"""A pass over particles tells how far it is, keeps what it has, and can be taken up again."""

from dataclasses import MISSING, fields, replace

import pytest
import torch

from instamap.geometry import rotations
from instamap.geometry.cube import Cube
from instamap.progress import Progress
from instamap.scene import Batch, Optics, Views
from instamap.statistics import accumulator, streaming
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.testing.device import pretended_device

BOX = 8
COUNT = 40


class Memory:
    """Particles in memory."""

    box = BOX
    pixel_size = 2.0
    premultiplied = False
    count = COUNT

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(COUNT, BOX, BOX, generator=generator)
        self.views = Views.of(rotations.random(COUNT, generator=generator))
        self.read = []

    def batch(self, rows):
        self.read += rows.tolist()
        return Batch(self.images[rows], self.views[rows])


class White:
    """Noise of variance 1."""

    def noise_variance(self, views):
        return torch.ones(len(views), BOX // 2 + 1)


class Counter(Progress):
    def __init__(self):
        self.told = []

    def images_read(self, done, total):
        self.told.append((done, total))


class Shelf:
    def __init__(self):
        self.kept = []

    def save(self, name, statistics):
        self.kept.append((name, statistics))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_PIXELS", 5 * BOX**2)
    monkeypatch.setattr(accumulator, "FLUSH", 10)


SETS = {"half1": torch.arange(0, 25), "half2": torch.arange(25, 40)}


def same(one, other) -> bool:
    return torch.equal(one.b, other.b) and torch.equal(one.kernel, other.kernel)


def test_images_that_have_been_read_are_counted_over_all_sets():
    counter = Counter()
    accumulate(Memory(), SETS, White(), progress=counter)
    assert counter.told == [(done, COUNT) for done in range(0, 41, 5)]


def test_what_has_been_added_is_kept_and_not_read_again():
    shelf = Shelf()
    whole = accumulate(Memory(), SETS, White(), checkpoint=shelf)
    counts = [(name, statistics.count) for name, statistics in shelf.kept]
    assert counts == [("half1", 10), ("half1", 20), ("half1", 25), ("half2", 10), ("half2", 15)]
    for stop in range(len(counts)):
        before = dict(shelf.kept[: stop + 1])
        particles = Memory()
        counter = Counter()
        found = accumulate(particles, SETS, White(), before=before, progress=counter)
        left = COUNT - sum(statistics.count for statistics in before.values())
        assert len(particles.read) == left
        assert counter.told[-1:] == ([(left, left)] if left else [])
        assert all(same(found[name], whole[name]) for name in SETS)


def test_whether_it_is_kept_changes_nothing():
    kept = accumulate(Memory(), SETS, White(), checkpoint=Shelf())
    plain = accumulate(Memory(), SETS, White())
    assert all(same(kept[name], plain[name]) for name in SETS)


def test_images_go_to_the_device_and_statistics_come_back(monkeypatch):
    """On a pretended card, what is added is there, transfer functions too."""
    places = []

    class Adder:
        """An accumulator that adds nothing: what is chosen by values has none here."""

        def __init__(self, box, pixel_size, *, device, **_):
            self.statistics = Statistics.empty(Cube.whole(box), pixel_size, device=device)

        def add(self, images, views, *, noise_variance, ctf, weights):
            places.append((images.device, ctf.device))

        def finish(self):
            assert self.statistics.b.device.type == "meta"
            return self.statistics

    monkeypatch.setattr(accumulator, "Accumulator", Adder)

    # Its course depends on values too.
    def transfer(optics, box, pixel_size):
        return optics.defocus_u

    monkeypatch.setattr(streaming, "compiled_ctf", transfer)
    particles = Memory()
    ones = torch.ones(COUNT)
    optics = Optics(*[ones] * len([field for field in fields(Optics) if field.default is MISSING]))
    particles.views = replace(particles.views, optics=optics)
    batch = particles.batch(torch.arange(5))
    monkeypatch.setattr(particles, "batch", lambda rows: batch)
    rows = {"all": torch.arange(7)}
    with pretended_device() as device:
        made = accumulate(particles, rows, White(), device=device)
    assert places == [(device, device)] * 2
    assert made["all"].b.device.type == "cpu"
    assert made["all"].kernel.device.type == "cpu"
