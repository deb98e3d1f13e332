"""Processes that share one command, played by threads: what they say to each other goes through
queues, pickled.
"""

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

from torch import Tensor

from instamap.data.particles import Particles
from instamap.workflows.processes import Processes
from instamap.workflows.settings import Settings
from instamap.workflows.team import Team, contribute, dismiss

LONGEST = 60  # seconds that one waits for another


class Threads(Processes):
    """One of the threads: see `Processes`."""

    def __init__(self, rank: int, to_others: list[Queue], to_leader: list[Queue]) -> None:
        super().__init__(rank, len(to_others))
        object.__setattr__(self, "to_others", to_others)
        object.__setattr__(self, "to_leader", to_leader)

    def tell_all(self, what: Any) -> None:
        for queue in self.to_others[1:]:
            queue.put(pickle.dumps(what))

    def hear(self) -> Any:
        return pickle.loads(self.to_others[self.rank].get(timeout=LONGEST))

    def send(self, tensors: list[Tensor]) -> None:
        self.to_leader[self.rank].put(pickle.dumps(tensors))

    def receive(self, rank: int) -> list[Tensor]:
        return pickle.loads(self.to_leader[rank].get(timeout=LONGEST))


@contextmanager
def team_of(count: int, settings: Settings) -> Iterator[Team]:
    """So many that work for each other; raises what one of them has met."""
    queues = [[Queue() for _ in range(count)] for _ in range(2)]
    each = [Threads(rank, *queues) for rank in range(count)]
    wrong: list[BaseException] = []

    def work(one: Threads) -> None:
        try:
            contribute(one, settings)
        except BaseException as error:
            wrong.append(error)
            one.send([])  # the leader goes on, so that the test ends

    running = [threading.Thread(target=work, args=(one,)) for one in each[1:]]
    for thread in running:
        thread.start()
    try:
        yield Team(each[0], settings, Particles.open(settings.particles))
    finally:
        dismiss(each[0])
        for thread in running:
            thread.join()
    if wrong:
        raise wrong[0]
