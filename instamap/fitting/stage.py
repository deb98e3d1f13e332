"""One stage of a fit, as data: what learns in it, how fast, and how far points are moved at random.

No torch is needed to read or write it.
"""

from dataclasses import dataclass

from instamap.plugin.options import Options, option


@dataclass(frozen=True)
class Stage(Options):
    """One stage, which ends where evaluations stop improving, or after `steps`.

    The next one goes on from the best evaluation.
    """

    steps: int | None = option(None, "steps at most; none means those of the objective", low=1)
    representation: float = option(
        1.0, "factor of this part's learning rate; 0 freezes it", low=0.0
    )
    deformation: float = option(1.0, "factor of this part's learning rate; 0 freezes it", low=0.0)
    forward: float = option(1.0, "factor of this part's learning rate; 0 freezes it", low=0.0)
    likelihood: float = option(1.0, "factor of this part's learning rate; 0 freezes it", low=0.0)
    warm_up: int = option(0, "first steps, over which learning rates rise linearly", low=0)
    decay: float = option(
        1.0,
        "factor by which learning rates fall, geometrically, until the last step",
        low=1e-6,
        high=1.0,
    )
    jitter: float = option(
        1.0, "factor of the jitter of the objective and of the forward operator", low=0.0
    )
    jitter_end: float | None = option(
        None, "factor that it reaches linearly at the last step; none means that it stays", low=0.0
    )

    def factor(self, part: str) -> float:
        """The factor of the learning rate of one part, by its kind; 0 means that it is frozen."""
        factors = {
            "representation": self.representation,
            "deformation": self.deformation,
            "forward": self.forward,
            "likelihood": self.likelihood,
        }
        return factors[part]

    def rate(self, part: str, step: int, steps: int) -> float:
        """The factor of a part's learning rate at step 1..steps, with warm-up and decay."""
        rise = min(1.0, step / (self.warm_up + 1))
        fall = self.decay ** (step / steps)
        return self.factor(part) * rise * fall

    def jitter_at(self, step: int, steps: int) -> float:
        """The factor of the jitter at step 1..steps."""
        end = self.jitter if self.jitter_end is None else self.jitter_end
        return self.jitter + (end - self.jitter) * step / steps
