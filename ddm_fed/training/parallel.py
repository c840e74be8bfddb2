"""Several processes of one site train one expert: started by torchrun, on one or more machines.

Every process draws the same batch and computes its own rows of it. Gradients are averaged by DDP,
or weights, averages and optimizer state are divided as well (FSDP). Only process 0 writes.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from torch import Tensor, nn

from ddm_fed.errors import OptionError

# The longest that one process may wait for another: for a checkpoint to be written, above all.
TIMEOUT_S = 600.0


def process_rank() -> int:
    """Returns this process's number, as torchrun says; 0 if it was started alone."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it.

    Attributes:
        device: Where this process computes.
        rank: Its number; 0 writes and reports.
        size: How many there are.
        shard: Whether they divide the weights.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    shard: bool = False

    def rows(self, count: int) -> slice:
        """Returns which of `count` rows are this process's; shares differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of `values` over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def of_first(self, values: Tensor) -> Tensor:
        """Returns what `values` are in process 0, in their place."""
        if self.size > 1:
            torch.distributed.broadcast(values, src=0)
        return values

    def told(self, text: str) -> str:
        """Returns what process 0 says. No object is unpickled."""
        said = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        length = self.of_first(torch.tensor(len(said), device=self.device))
        said = said if self.rank == 0 else said.new_empty(int(length))
        return bytes(self.of_first(said).tolist()).decode()

    def place(self, model: nn.Module) -> None:
        """Moves `model` to the device, or this process's part of it where weights are divided."""
        if not self.shard:
            model.to(self.device)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def share_gradients(self, network: nn.Module) -> nn.Module:
        """Returns `network` such that a backward pass leaves the processes' mean gradient."""
        if self.size == 1 or self.shard:
            return network
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def forget_gathered(self, model: nn.Module) -> None:
        """Drops what a pass without gradient gathered of divided weights, before they change."""
        if self.shard:
            model.reshard()  # type: ignore[operator]

    def accumulating(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Enters a pass after which gradients need not be shared yet, unless it is the last.

        Divided weights share after every pass: whole gradients would not fit.
        """
        if last or self.size == 1 or self.shard:
            return nullcontext()
        return cast("AbstractContextManager[None]", network.no_sync())  # type: ignore[operator]


@contextmanager
def join_team(*, shard: bool, timeout_s: float = TIMEOUT_S) -> Iterator[Team]:
    """Yields the team torchrun started this process in; alone without torchrun.

    When a process ends, for whatever reason, the others' next exchange with it fails.

    Args:
        shard: Whether to divide the weights.
        timeout_s: The longest wait for another process.

    Raises:
        OptionError: weights are to be divided, but among one process.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), process_rank()
    on_gpu = torch.cuda.is_available()
    if size == 1:
        if shard:
            raise OptionError(
                "--shard divides the weights among processes, and there is only one",
                hint="start with torchrun --nproc-per-node N, or leave out --shard",
            )
        yield Team(torch.device("cuda" if on_gpu else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_s),
        device_id=device if on_gpu else None,
    )
    try:
        yield Team(device, rank, size, shard)
    finally:
        torch.distributed.destroy_process_group()


def local_part(value: Tensor) -> Tensor:
    """Returns this process's part of a divided tensor, sharing memory; others as they are."""
    return cast("Tensor", value.to_local()) if hasattr(value, "to_local") else value


def whole(value: Tensor) -> Tensor:
    """Returns a divided tensor in one piece; every process must ask. Others as they are."""
    return cast("Tensor", value.full_tensor()) if hasattr(value, "full_tensor") else value


def fill(target: Tensor, source: Tensor) -> None:
    """Copies the whole tensor `source` into `target`, which may be divided."""
    if hasattr(target, "to_local"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        divided = cast("DTensor", target)
        # every process read the same file, so none has to send
        source = distribute_tensor(
            source.to(divided.to_local().device),
            divided.device_mesh,
            divided.placements,
            src_data_rank=None,
        ).to_local()
    local_part(target).copy_(source)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the entries of the outermost module lists: gathered, used and freed one by one."""
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(
            name.startswith(f"{outer}.") for outer in lists
        ):
            lists.append(name)
            yield from module
