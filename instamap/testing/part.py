"""What is asked of every part, whatever its kind: the base of the kit's classes, its decorator and
its comparisons.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from instamap.plugin import options as opts
from instamap.plugin.registry import default
from instamap.scene import Scene
from instamap.testing.scenes import Case, cases

SMALL = (8, 9, 12, 13)

# A law is inherited by many classes, which hypothesis suspects of being a mistake
# (differing_executors). No deadline: the first
# example may compile kernels. Twenty examples keep a part's laws at some seconds.
SETTINGS = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


def law(boxes: tuple[int, ...]) -> Callable:
    """Decorates a law: a test method of one argument, a `Case` whose box is one of `boxes`."""
    return lambda test: SETTINGS(given(case=cases(boxes))(test))


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of `b` (absolute where `b` is zero);
    infinite where the shapes differ.
    """
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    scale = float(b.detach().abs().max())
    return float((a - b).detach().abs().max()) / (scale or 1.0)


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """∂ Σ value / ∂x, zero where the value does not depend on x or was cut off from it."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def stir(part: nn.Module, generator: torch.Generator, amount: float = 0.1) -> nn.Module:
    """Moves every parameter from its value at birth, which is often zero, where laws would hold for
    no reason.
    """
    with torch.no_grad():
        for p in part.parameters():
            p += amount * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return part


class PartLaws:
    """Base of the kit's classes. Give `name` (and `options`) of a registered part, or override
    `make`.
    """

    kind: ClassVar[str]
    base_options: ClassVar[type] = opts.Options
    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def make(self, scene: Scene) -> nn.Module:
        """The part under test, newly made for `scene`."""
        cls = default().get(self.kind, self.name).load()
        return cls(opts.from_dict(cls.Options, self.options), scene)

    def evaluate(self, part: nn.Module, case: Case, dtype: torch.dtype) -> Tensor:
        """What the part computes for one draw of inputs, in `dtype`."""
        raise NotImplementedError

    def born(self, case: Case, scene: Scene | None = None) -> nn.Module:
        """A new part in float64 and eval mode; the case's seed decides its random start, without
        touching the global state.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            return self.make(case.scene() if scene is None else scene).to(torch.float64).eval()

    def grown(self, case: Case, scene: Scene | None = None) -> nn.Module:
        """A part away from birth."""
        return stir(self.born(case, scene), torch.Generator().manual_seed(case.seed + 1))

    def test_options_can_be_typed_and_recorded(self):
        """Options is a frozen dataclass of the kind's base class, its defaults are valid, and
        run.toml can hold them.
        """
        part = self.born(Case(0, 12, 1.0, 2))
        made = type(part).Options
        assert issubclass(made, self.base_options), (
            f"{made.__qualname__} must subclass {self.base_options.__name__}"
        )
        assert dataclasses.is_dataclass(made) and made.__dataclass_params__.frozen, (
            f"{made.__qualname__} must be a frozen dataclass"
        )
        assert isinstance(part.options, made), "the part must keep the options it was made with"
        assert opts.from_dict(made, opts.to_dict(made())) == made()
        assert all(spec.help for spec in opts.describe(made)), "every option needs a help text"

    @law(SMALL)
    def test_every_tensor_is_a_parameter_or_a_buffer(self, case):
        """A tensor kept in any other way stays behind when the part moves to another device or
        dtype.
        """
        part = self.grown(case)
        self.evaluate(part, case, torch.float64)  # caches made on the way count too
        stray = [
            where
            for module in part.modules()
            for where in _stray(vars(module), type(module).__name__)
        ]
        assert not stray, f"register as Parameter or buffer: {', '.join(stray)}"
        left = [
            n
            for n, t in [*part.named_parameters(), *part.named_buffers()]
            if t.is_floating_point() and t.dtype != torch.float64
        ]
        assert not left, f"not moved by .to(float64): {', '.join(left)}"

    @law(SMALL)
    def test_state_dict_round_trip(self, case):
        """A checkpoint, read into a newly made part of another random start, gives the same values
        to the last bit.
        """
        part = self.grown(case)
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        twin = self.born(dataclasses.replace(case, seed=case.seed + 2))
        twin.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(
            self.evaluate(twin, case, torch.float64), self.evaluate(part, case, torch.float64)
        )

    @law(SMALL)
    def test_gradient_reaches_every_parameter(self, case):
        """No parameter is forgotten or cut off, away from birth."""
        part = self.grown(case)
        if not list(part.parameters()):
            return
        out = self.evaluate(part, case, torch.float64)
        assert out.requires_grad, "the result is cut off from the parameters"
        (out * torch.randn(out.shape, generator=case.generator(), dtype=out.dtype)).sum().backward()
        for name, p in part.named_parameters():
            assert p.grad is not None and p.grad.abs().max() > 0, (
                f"no gradient reaches parameter '{name}'"
            )
            assert p.grad.isfinite().all(), f"the gradient of parameter '{name}' is not finite"

    @law(SMALL)
    def test_float32_and_float64_agree(self, case):
        """Single precision is what fits run in. 1e-4 of the largest value leaves room for sums of a
        thousand rounded terms.
        """
        single = copy.deepcopy(self.grown(case)).to(torch.float32)
        double = copy.deepcopy(single).to(torch.float64)
        a = self.evaluate(single, case, torch.float32)
        b = self.evaluate(double, case, torch.float64)
        assert a.dtype == torch.float32 and b.dtype == torch.float64, (
            f"the result has {a.dtype} for float32 and {b.dtype} for float64"
        )
        assert difference(a.double(), b) < 1e-4


def _stray(value: Any, where: str) -> Iterator[str]:
    """Where tensors hide that torch does not know of. The Scene, which every part is given and
    nobody moves, is exempt.
    """
    if isinstance(value, Tensor):
        yield where
    elif isinstance(value, dict):
        known = ("_parameters", "_buffers", "_modules")
        for key, item in value.items():
            if key not in known:
                yield from _stray(item, f"{where}.{key}")
    elif isinstance(value, list | tuple | set | frozenset):
        for i, item in enumerate(value):
            yield from _stray(item, f"{where}[{i}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | Scene):
        yield from _stray(
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, where
        )
