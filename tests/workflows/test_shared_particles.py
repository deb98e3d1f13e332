"""Particles in several processes are what they are in one, to the order of sums; and so are
statistics that several gather.
"""

import mrcfile
import pytest
import torch
from support.threads import team_of

from instamap.data.particles import Particles
from instamap.data.symmetry_expansion import Expansion
from instamap.errors import DataError
from instamap.fitting.parallel import Stopped
from instamap.geometry.cube import Cube
from instamap.model import make_part
from instamap.motion import domain_maps
from instamap.motion.domain_maps import DomainImages
from instamap.motion.domains import Placement
from instamap.scene import ContrastFactors, Scene
from instamap.simulate import particle_set
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.workflows import shared_statistics
from instamap.workflows.processes import Processes
from instamap.workflows.settings import Settings
from instamap.workflows.shared_particles import SharedParticles
from instamap.workflows.shared_statistics import Gather
from instamap.workflows.team import ImageSource, Member, Task

COUNT = 40
BOX = 16
ROUNDING = 1e-5  # of float32 sums over all images
PARTICLE = torch.arange(COUNT) // 2  # two images of each particle
ROWS = torch.arange(COUNT)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    return particle_set.demo(tmp_path_factory.mktemp("set"), count=COUNT, box=BOX, pixel_size=8.0)


@pytest.fixture(scope="module")
def variance():
    return torch.linspace(1.0, 2.0, BOX // 2 + 1)[None]


@pytest.fixture(params=[1, 2, 3])
def team(request, star):
    with team_of(request.param, Settings(particles=star)) as team:
        yield team


@pytest.fixture(params=[None, "weights"])
def both(request, team, star, variance):
    """The particles in one process and in all."""
    particles = Particles.open(star)
    weights = None
    if request.param:
        weights = torch.rand(COUNT, generator=generator(), dtype=torch.float64)
    one = ParticleStatistics.read(particles, ROWS, variance, PARTICLE, weights)
    shared = SharedParticles.read(team, particles, ROWS, variance, PARTICLE, weights)
    return one, shared


def agree(one: torch.Tensor, two: torch.Tensor) -> None:
    assert one.shape == two.shape
    assert (one - two).norm() <= ROUNDING * one.norm()


def agree_in_all(one, shared) -> None:
    """What is asked of particles, of both."""
    assert torch.equal(one.particle, shared.particle)
    assert one.count == shared.count and one.box == shared.box
    assert one.pixel_size == shared.pixel_size
    assert one.effective_count == pytest.approx(shared.effective_count)
    maps = torch.randn(18, BOX, BOX, BOX, generator=generator())
    for count in (1, 3, 18):  # the last by a basis
        for mine, theirs in zip(
            one.normal_equations(maps[:count]), shared.normal_equations(maps[:count]), strict=True
        ):
            agree(mine, theirs)
    power = torch.randn(one.count, generator=generator(), dtype=torch.float64)
    data = torch.rand(one.count, generator=generator(), dtype=torch.float64)
    agree_as_statistics(one.statistics(power), shared.statistics(power))
    weights = torch.stack([power, data], 1)
    sums = one.weighted_sums(weights, weights)
    for alone, together in zip(sums, shared.weighted_sums(weights, weights), strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def agree_as_statistics(one: Statistics, two: Statistics) -> None:
    agree(one.b, two.b)
    agree(one.kernel, two.kernel)
    assert one.count == two.count and one.cube == two.cube
    assert one.weight == pytest.approx(two.weight)


def test_all_particles(both):
    agree_in_all(*both)


def test_some_particles(both):
    """Of which a process may have none; and some of these."""
    one, shared = both
    for chosen in (torch.tensor([17, 2, 5, 11]), torch.tensor([19])):
        agree_in_all(one.select(chosen), shared.select(chosen))
    fewer = torch.arange(4, 16)
    last = torch.tensor([0, 3, 11])
    agree_in_all(one.select(fewer).select(last), shared.select(fewer).select(last))


def test_particles_in_chunks(both):
    """They are those of all processes together, in their order."""
    _, shared = both
    maps = torch.randn(2, BOX, BOX, BOX, generator=generator())
    chunks = shared.in_chunks(3)
    assert len(chunks) == -(-shared.count // (3 * shared.team.count))
    h = torch.cat([some.normal_equations(maps)[1] for some in chunks])
    agree(h, shared.normal_equations(maps)[1])


def test_particles_beside_a_nuisance_and_with_more_in_them(both):
    one, shared = both
    more = 0.1 * torch.randn(2, BOX, BOX, BOX, generator=generator())
    amount = torch.rand(one.count, 2, generator=generator())
    agree_in_all(one.with_added(more, amount), shared.with_added(more, amount))
    agree_in_all(one.with_nuisance(more), shared.with_nuisance(more))


def test_parts_are_forgotten_when_nobody_needs_them(team, star, variance):
    shared = SharedParticles.read(team, Particles.open(star), ROWS, variance, PARTICLE)
    some = shared.select(torch.tensor([1, 2]))
    assert len(team._own.parts) == 2
    del shared
    maps = torch.zeros(1, BOX, BOX, BOX)
    some.normal_equations(maps)
    assert list(team._own.parts) == [some.number.value]


def test_images_are_read_alike_everywhere(star, variance):
    """With the factors of their contrast, a row for each copy by symmetry, and fewer pixels."""
    settings = Settings(particles=star, symmetry="C2")
    expanded = Particles.open(star).expanded(Expansion(settings.point_group))
    mean = torch.rand(2 * COUNT, generator=generator(), dtype=torch.float64)
    particles = expanded.with_contrast(ContrastFactors(mean, 2 * mean**2)).with_box(12)
    rows = torch.arange(2 * COUNT)
    one = ParticleStatistics.read(particles, rows, variance[:, :7], rows)
    with team_of(2, settings) as team:
        shared = SharedParticles.read(team, particles, rows, variance[:, :7], rows)
        maps = torch.randn(2, 12, 12, 12, generator=generator())
        agree(one.normal_equations(maps)[1], shared.normal_equations(maps)[1])


def test_gathered_statistics(team, star, variance):
    particles = Particles.open(star)
    scene = Scene(BOX, particles.pixel_size, COUNT, noise_variance=variance)
    weights = torch.rand(COUNT, generator=generator(), dtype=torch.float64)
    rows = {"half1": ROWS[::2], "half2": ROWS[1:-1:2], "held_out": ROWS[-1:]}
    likelihood = make_part("likelihood", Settings(particles=star).likelihood, scene)
    one = accumulate(particles, rows, likelihood, weights=weights)
    task = Gather(ImageSource.of(particles), scene, rows, Cube.whole(BOX), None, weights)
    found = shared_statistics.gather(team, task)
    assert list(found) == list(rows)
    for name, statistics in one.items():
        agree_as_statistics(statistics, found[name])
        assert statistics.energy == pytest.approx(found[name].energy)


def test_gathered_statistics_of_a_domain(team, star, variance):
    particles = Particles.open(star)
    angle = torch.linspace(0, 1, COUNT)
    turn = torch.eye(3).repeat(COUNT, 2, 1, 1)
    turn[:, 1, 0, 0] = turn[:, 1, 1, 1] = angle.cos()
    turn[:, 1, 0, 1] = angle.sin()
    turn[:, 1, 1, 0] = -angle.sin()
    shift = torch.randn(COUNT, 2, 3, generator=generator())
    present = torch.rand(COUNT, 2, generator=generator())
    images = DomainImages(particles, ROWS, variance, Placement(turn, shift), present=present)
    densities = torch.rand(2, BOX, BOX, BOX, generator=generator())
    one = domain_maps.gather(images, densities, 1)
    agree_as_statistics(one, shared_statistics.gather_domain(team, images, densities, 1))


def test_each_process_of_a_machine_has_a_card(star, monkeypatch):
    """As far as there are cards."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    member = Member(Processes(3, 8), Settings(particles=star), Particles.open(star))
    for number, card in (("0", 0), ("1", 1), ("2", 0)):
        monkeypatch.setenv("LOCAL_RANK", number)
        assert member.device("cuda:0") == torch.device("cuda", card)
        assert member.device("cpu") == torch.device("cpu")


class Wrong(Task):
    """Cannot be carried out."""

    def carry_out(self, member, progress):
        raise DataError("it is wrong")


class Right(Task):
    """Answers nothing."""

    def carry_out(self, member, progress):
        return []


def test_nobody_asks_once_a_task_has_failed(star):
    """Another fit would take what others still answer to that task for its own."""
    settings = Settings(particles=star)
    with team_of(1, settings) as team:
        assert team.ask(Right()) == [[]]
        with pytest.raises(DataError):
            team.ask(Wrong())
        with pytest.raises(Stopped):
            team.ask(Right())


def test_no_image_of_a_set(star, variance):
    scene = Scene(BOX, 8.0, COUNT, noise_variance=variance)
    with team_of(2, Settings(particles=star)) as team:
        source = ImageSource.of(Particles.open(star))
        task = Gather(source, scene, {"one": ROWS[:0]}, Cube.whole(BOX))
        found = shared_statistics.gather(team, task)
    assert found["one"].count == 0 and not found["one"].kernel.any()


def test_a_wild_image_in_the_share_of_another_ends_all(tmp_path, variance):
    """The leader does not read it: the process whose image it is says so."""
    star = particle_set.demo(tmp_path, count=COUNT, box=BOX, pixel_size=8.0)
    with mrcfile.mmap(star.with_name("particles.mrcs"), mode="r+") as stack:
        stack.data[COUNT - 3] *= 1000.0
    scene = Scene(BOX, 8.0, COUNT, noise_variance=variance)
    with (
        pytest.raises(DataError, match=f"row {COUNT - 2}\\b"),
        team_of(2, Settings(particles=star)) as team,
    ):
        source = ImageSource.of(Particles.open(star))
        team.ask(Gather(source, scene, {"all": ROWS}, Cube.whole(BOX)))
