"""What is asked of every part, whatever its kind: the base of the kit's classes, its decorator and
its comparisons.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from instamap.plugin import options as opts
from instamap.plugin.registry import default
from instamap.scene import Scene
from instamap.testing.scenes import Case, cases

SMALL_BOXES = (8, 9, 12, 13)

PRECISION = 1e-4
"""Share of the largest value by which float32 and float64 may differ: it leaves room for sums of a
thousand rounded terms.
"""

TORCH_TABLES = ("_parameters", "_buffers", "_modules")  # in which torch knows of tensors

# A law is inherited by many classes, which hypothesis suspects of being a mistake
# (differing_executors). No deadline: the first example may compile kernels. Twenty examples keep a
# part's laws at some seconds.
SETTINGS = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

Module = TypeVar("Module", bound=nn.Module)


def law(boxes: tuple[int, ...]) -> Callable[[Callable], Callable]:
    """Decorates a law: a test method of one argument, a `Case` whose box is one of `boxes`."""

    def decorate(test: Callable) -> Callable:
        with_cases = given(case=cases(boxes))(test)
        return SETTINGS(with_cases)

    return decorate


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of `b` (absolute where `b` is zero).

    It is infinite where the shapes differ.
    """
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    scale = float(b.detach().abs().max())
    largest = float((a - b).detach().abs().max())
    return largest / (scale or 1.0)


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """∂ Σ value / ∂x, zero where the value does not depend on x or was cut off from it."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(
        value.sum(),
        x,
        retain_graph=True,
        allow_unused=True,
    )
    return torch.zeros_like(x) if slope is None else slope


def stir(
    part: Module,
    generator: torch.Generator,
    amount: float = 0.1,
) -> Module:
    """Moves every parameter from its value at birth.

    That is often zero, where laws would hold for no reason.
    """
    with torch.no_grad():
        for parameter in part.parameters():
            noise = torch.randn(
                parameter.shape,
                generator=generator,
                dtype=torch.float64,
            )
            parameter.add_(amount * noise.to(parameter))
    return part


class PartLaws:
    """Base of the kit's classes. Give `name` (and `options`) of a registered part, or override
    `make`.
    """

    kind: ClassVar[str]
    base_options: ClassVar[type] = opts.Options
    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def make(self, scene: Scene) -> Any:
        """The part under test, newly made for `scene`."""
        part_class: Any = default().get(self.kind, self.name).load()
        options = opts.from_dict(part_class.Options, self.options)
        return part_class(options, scene)

    def evaluate(
        self,
        part: Any,
        case: Case,
        dtype: torch.dtype,
    ) -> Tensor:
        """What the part computes for one draw of inputs, in `dtype`."""
        raise NotImplementedError

    def new_part(self, case: Case, scene: Scene | None = None) -> Any:
        """A new part in float64 and eval mode.

        The case's seed decides its random start, without touching the global state.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            part = self.make(case.scene() if scene is None else scene)
        return part.to(torch.float64).eval()

    def stirred_part(self, case: Case, scene: Scene | None = None) -> Any:
        """A part away from birth."""
        generator = torch.Generator().manual_seed(case.seed + 1)
        return stir(self.new_part(case, scene), generator)

    def test_options_can_be_typed_and_recorded(self) -> None:
        """Options is a frozen dataclass of the kind's base class.

        Its defaults are valid, and run.toml can hold them.
        """
        part = self.new_part(
            Case(
                0,
                12,
                1.0,
                2,
            )
        )
        options_class: Any = type(part).Options
        name = options_class.__qualname__
        assert issubclass(options_class, self.base_options), (
            f"{name} must subclass {self.base_options.__name__}"
        )
        assert _is_frozen_dataclass(options_class), f"{name} must be a frozen dataclass"
        assert isinstance(part.options, options_class), (
            "the part must keep the options it was made with"
        )
        usual = options_class()
        recorded = opts.to_dict(usual)
        assert opts.from_dict(options_class, recorded) == usual
        for spec in opts.describe(options_class):
            assert spec.help, "every option needs a help text"

    @law(SMALL_BOXES)
    def test_every_tensor_is_a_parameter_or_a_buffer(self, case: Case) -> None:
        """A tensor kept in any other way stays behind when the part moves to another device or
        dtype.
        """
        part = self.stirred_part(case)
        self.evaluate(
            part,
            case,
            torch.float64,
        )  # caches made on the way count too
        stray: list[str] = []
        for module in part.modules():
            stray += _stray_tensors(vars(module), type(module).__name__)
        assert not stray, f"register as Parameter or buffer: {', '.join(stray)}"
        left = []
        for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                left.append(name)
        assert not left, f"not moved by .to(float64): {', '.join(left)}"

    @law(SMALL_BOXES)
    def test_state_dict_round_trip(self, case: Case) -> None:
        """A checkpoint, read into a newly made part of another random start, gives the same values
        to the last bit.
        """
        part = self.stirred_part(case)
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        twin = self.new_part(dataclasses.replace(case, seed=case.seed + 2))
        twin.load_state_dict(torch.load(file, weights_only=True))
        restored = self.evaluate(
            twin,
            case,
            torch.float64,
        )
        expected = self.evaluate(
            part,
            case,
            torch.float64,
        )
        assert torch.equal(restored, expected)

    @law(SMALL_BOXES)
    def test_gradient_reaches_every_parameter(self, case: Case) -> None:
        """No parameter is forgotten or cut off, away from birth."""
        part = self.stirred_part(case)
        if not list(part.parameters()):
            return
        value = self.evaluate(
            part,
            case,
            torch.float64,
        )
        assert value.requires_grad, "the result is cut off from the parameters"
        weight = torch.randn(
            value.shape,
            generator=case.generator(),
            dtype=value.dtype,
        )
        (value * weight).sum().backward()
        for name, parameter in part.named_parameters():
            slope = parameter.grad
            assert slope is not None, f"no gradient reaches parameter '{name}'"
            assert slope.abs().max() > 0, f"no gradient reaches parameter '{name}'"
            assert slope.isfinite().all(), f"the gradient of parameter '{name}' is not finite"

    @law(SMALL_BOXES)
    def test_float32_and_float64_agree(self, case: Case) -> None:
        """Single precision, which fits run in, gives the values of double precision."""
        single = copy.deepcopy(self.stirred_part(case)).to(torch.float32)
        double = copy.deepcopy(single).to(torch.float64)
        coarse = self.evaluate(
            single,
            case,
            torch.float32,
        )
        fine = self.evaluate(
            double,
            case,
            torch.float64,
        )
        assert coarse.dtype == torch.float32, f"the result has {coarse.dtype} for float32"
        assert fine.dtype == torch.float64, f"the result has {fine.dtype} for float64"
        assert difference(coarse.double(), fine) < PRECISION


def _is_frozen_dataclass(made: type) -> bool:
    parameters: Any = getattr(made, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _stray_tensors(value: Any, where: str) -> Iterator[str]:
    """Where tensors hide that torch does not know of.

    The Scene, which every part is given and nobody moves, is exempt.
    """
    if isinstance(value, Tensor):
        yield where
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in TORCH_TABLES:
                yield from _stray_tensors(item, f"{where}.{key}")
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            yield from _stray_tensors(item, f"{where}[{number}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | Scene):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        yield from _stray_tensors(fields, where)
