"""The processes of one training, one for each device, as torchrun starts them; alone where there is one.

Every process holds the whole of both networks. Each step they share out the rows of a batch, and average the
gradients before an optimiser uses them, so that the networks stay the same in all. The first validates, saves
and tells; the others follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segpipe.errors import RunError
from segpipe.models.device import choose_device, kind_of
from segpipe.torchrun import TorchrunPlace, torchrun_place

# The first may validate, or look through a bucket, for long while the others wait.
_PATIENCE = timedelta(hours=2)
_SEEDS_APART = 2**32


@dataclass(frozen=True)
class Processes:
    """This process's place among them: rank, from 0 on, of count; device: where their tensors meet."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether it is the one that validates, saves and tells."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows (n,) of a batch; of one that cannot be shared out evenly some count twice."""
        if self.count == 1:
            return rows
        return rows[
            torch.arange(self.rank, self.rank + self.share_of(len(rows)) * self.count, self.count) % len(rows)
        ]

    def share_of(self, size: int) -> int:
        """How many of a batch of this size each process takes."""
        return -(-size // self.count)

    def own_seed(self, seed: int) -> int:
        """A seed for what each process draws for itself; the first draws what one alone would."""
        return seed + self.rank * _SEEDS_APART

    def average_gradients_of(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the gradients averaged over all processes before every step of this optimiser."""
        if self.count == 1:
            return

        def average(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            parameters = [
                one for group in optimizer.param_groups for one in group["params"] if one.requires_grad
            ]
            for one in parameters:
                if one.grad is None:  # another process's may have one
                    one.grad = torch.zeros_like(one)
            self._average([one.grad for one in parameters])

        optimizer.register_step_pre_hook(average)

    def average_buffers(self, *networks: nn.Module) -> None:
        """What networks gather of the batches they see, averaged: running means and variances."""
        if self.count > 1:
            self._average(
                [one for network in networks for one in network.buffers() if one.is_floating_point()]
            )

    def agree(self, *networks: nn.Module) -> None:
        """Give all processes the first one's weights and buffers."""
        for network in networks if self.count > 1 else ():
            for tensor in network.state_dict().values():
                self.from_first(tensor)

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process's values, put into every other's tensor of that shape. Raises RunError."""
        if self.count > 1:
            shared = tensor.detach().to(self.device).contiguous()
            _together(lambda: dist.broadcast(shared, src=0))
            with torch.no_grad():
                tensor.copy_(shared)
        return tensor

    def text_from_first(self, text: str) -> str:
        """The first process's text, in every one. Raises RunError."""
        if self.count == 1:
            return text
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        (length,) = self.from_first(torch.tensor([len(content)])).tolist()
        received = content if self.is_first else torch.zeros(length, dtype=torch.uint8)
        return bytes(self.from_first(received).tolist()).decode()

    def _average(self, tensors: list[Tensor]) -> None:
        """In one piece: a message for each would cost more than what it carries. Raises RunError."""
        if not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        _together(lambda: dist.all_reduce(flat))
        flat /= self.count
        averages = flat.split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, average in zip(tensors, averages, strict=True):
                tensor.copy_(average.view(tensor.shape))


ALONE = Processes()


@contextmanager
def all_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun has started, joined to one training, each on a device of its own.

    device: as for choose_device. Raises RunError when it is one for all of them, ModelError.
    """
    place = torchrun_place()
    if place.count == 1:
        yield Processes(device=choose_device(device))
        return
    own = own_device(place, device)
    if kind_of(own) == "cuda":
        torch.cuda.set_device(own)
    backend = "nccl" if kind_of(own) == "cuda" else "gloo"
    _together(lambda: dist.init_process_group(backend, timeout=_PATIENCE))
    try:
        yield Processes(dist.get_rank(), place.count, own)
    finally:
        dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Raises RunError where torchrun has started several: each would do the whole work, and write it."""
    if (count := torchrun_place().count) > 1:
        raise RunError(
            f"segpipe {command} works in one process, torchrun has started {count}: run it without torchrun"
        )


def own_device(place: TorchrunPlace, device: str) -> str:
    """The device of one of several processes: of a machine's GPUs each takes the one of its own number.

    Raises RunError for one GPU that is named for all of them, ModelError where there is none of its number.
    """
    if device.startswith("cuda:"):
        raise RunError(
            f"--device {device} is one GPU, and torchrun has started {place.count} processes: give --device "
            "cuda, each takes its own; CUDA_VISIBLE_DEVICES says of which"
        )
    chosen = choose_device(device)
    return choose_device(f"cuda:{place.local_rank}") if chosen == "cuda" else chosen


def _together(work: Callable[[], object]) -> None:
    """Work of all processes. Raises RunError when another one is gone."""
    try:
        work()
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        raise RunError(
            f"another process of this training has ended ({said}): what it said tells why; run all of them "
            "again with --resume"
        ) from error
