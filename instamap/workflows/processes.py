"""Several processes that carry out one command, as torchrun starts them: the first leads, the
others work for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from instamap.errors import InstamapError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

ALWAYS_SET = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, in each process
LEADER = 0
LONGEST_WAIT = timedelta(days=7)  # for one that is at work; one that is gone is noticed at once
FIRST_WAIT = timedelta(minutes=5)  # for all to be there
SHARED_COMMAND = "reconstruct"


class LostProcess(InstamapError):
    """Another of the processes has ended before its time."""


@dataclass(frozen=True)
class Processes:
    """The processes of one command, of which this is number `rank` of 0 .. count - 1."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        """Whether this process fits and writes."""
        return self.rank == LEADER

    def tell_all(self, what: Any) -> None:
        """Gives something to all others, who wait for it in `hear`."""
        self._broadcast([what])

    def hear(self) -> Any:
        """What the leader tells."""
        heard = [None]
        self._broadcast(heard)
        return heard[0]

    def send(self, tensors: "list[Tensor]") -> None:
        """Gives tensors to the leader."""
        from torch import distributed

        forms = [(tuple(one.shape), one.dtype) for one in tensors]
        with _noticed(self):
            distributed.send_object_list([forms], LEADER)
            for one in tensors:
                distributed.send(one.contiguous(), LEADER)

    def receive(self, rank: int) -> "list[Tensor]":
        """The tensors that the process `rank` sends."""
        import torch
        from torch import distributed

        forms: list[Any] = [None]
        tensors = []
        with _noticed(self, rank):
            distributed.recv_object_list(forms, rank)
            for shape, dtype in forms[0]:
                one = torch.empty(shape, dtype=dtype)
                distributed.recv(one, rank)
                tensors.append(one)
        return tensors

    def _broadcast(self, values: list[Any]) -> None:
        from torch import distributed

        with _noticed(self):
            distributed.broadcast_object_list(values, LEADER)


def from_environment() -> Processes | None:
    """The processes that torchrun has started; None for one alone."""
    if any(name not in os.environ for name in ALWAYS_SET):
        return None
    rank = int(os.environ["RANK"])
    count = int(os.environ["WORLD_SIZE"])
    return Processes(rank, count) if count > 1 else None


def check_command(name: str | None) -> None:
    """Raises OptionError for a command that several processes would all carry out."""
    processes = from_environment()
    if processes is not None and name != SHARED_COMMAND:
        raise OptionError(
            f"command '{name}' runs in one process, and torchrun has started {processes.count};"
            " run it without torchrun, or give --nproc-per-node=1"
        )


@contextmanager
def joined() -> Iterator[Processes | None]:
    """The processes of this command, connected within the block; None for one alone.

    Raises LostProcess where others do not come.
    """
    processes = from_environment()
    if processes is None:
        yield None
        return
    from torch import distributed

    if not distributed.is_available():
        raise OptionError(
            f"torchrun has started {processes.count} processes, and this PyTorch was built without"
            " torch.distributed; run instamap without torchrun, or install another build"
        )
    # Before there is a group: it keeps the one that is there when it is imported, as by LBFGS.
    import torch.distributed.nn  # noqa: F401

    with _noticed(processes):
        distributed.init_process_group("gloo", timeout=FIRST_WAIT)
        distributed.barrier()
    distributed.distributed_c10d._set_pg_timeout(LONGEST_WAIT)
    try:
        yield processes
    finally:
        distributed.destroy_process_group()


def current() -> Processes | None:
    """The processes that are connected; None for one alone."""
    processes = from_environment()
    if processes is None:
        return None
    from torch import distributed

    connected = distributed.is_available() and distributed.is_initialized()
    return processes if connected else None


@contextmanager
def _noticed(processes: Processes, rank: int | None = None) -> Iterator[None]:
    """Says of a broken connection that a process is gone."""
    try:
        yield
    except RuntimeError as error:
        others = "one of the others"
        if rank is not None:
            others = f"process {rank + 1} of {processes.count}"
        if not processes.leads:
            others = "the first one"
        raise LostProcess(
            f"{others} has ended before it had done its share of the work; what it or torchrun says"
            " tells why: mend that and start all of them again"
        ) from error
