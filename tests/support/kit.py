"""Which laws of the contract kit a part breaks."""

import pytest

from instamap.testing.scenes import Case


def failed(laws: type, made: type, boxes: tuple[int, int], **more) -> set[str]:
    """The laws that `made(options, scene)` breaks in an odd and an even box, without "test_"."""

    def make(self, scene):
        return made(made.Options(), scene)

    kit = type("Kit", (laws,), {"make": make, **more})()
    return {
        name.removeprefix("test_")
        for name in dir(kit)
        if name.startswith("test_") and not _holds(kit, getattr(kit, name), boxes)
    }


def _holds(kit, law, boxes) -> bool:
    draws = [(Case(seed, box, 1.3, 3),) for seed, box in enumerate(boxes)]
    if not hasattr(law, "hypothesis"):
        draws = [()]
    elif law.__name__ == "test_any_leading_shape":
        draws = [(*case, shape) for case in draws for shape in ((), (0,), (3, 2))]
    try:
        for draw in draws:
            law.hypothesis.inner_test(kit, *draw) if draw else law()
    except pytest.skip.Exception:
        return True
    except AssertionError:
        return False
    return True
