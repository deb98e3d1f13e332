"""A shard: every N-th row of a set of particles, from the I-th on."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch

from instamap.errors import OptionError


@dataclass(frozen=True)
class Shard:
    """Every of-th row, `number` counted from 1. Raises OptionError for a number not in 1..of."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise OptionError(
                f"shard '{self}' does not exist; the first number must be from 1 to the second,"
                " such as 3/16"
            )

    @staticmethod
    def parse(text: str) -> "Shard":
        """The shard that "3/16" names. Raises OptionError."""
        words = text.split("/")
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise OptionError(
                f"shard '{text}' cannot be read; write two whole numbers, such as 3/16"
            )
        return Shard(*map(int, words))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, rows: torch.Tensor) -> torch.Tensor:
        """Which of the row numbers (from 0) belong to it."""
        return rows % self.of == self.number - 1

    def meets(self, other: "Shard") -> bool:
        """Whether some row number belongs to both."""
        return (self.number - other.number) % math.gcd(self.of, other.of) == 0


ALL_ROWS = Shard(1, 1)


def missing_share(shards: list[Shard]) -> Fraction:
    """The share of all rows that is in none of these disjoint shards."""
    return 1 - sum((Fraction(1, shard.of) for shard in shards), start=Fraction(0))
