"""The experts of an ensemble, of which only some need to be in memory at once.

An ensemble of K experts takes K times the memory of one model, but a step needs one expert at a
time. The pool loads an expert when it is asked and lets go of the one that was asked longest ago,
before it loads another, so never more than `resident` are there.

Experts that stay at their sites are asked over a network. Their memory is not ours, and while one
site computes, the others are asked: `ExpertPool.gather`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from ddm_fed.flows import Condition, Expert, VelocityModel

Loader = Callable[[], VelocityModel]
"""Reads an expert; called again whenever the pool has let go of it."""

Precision = Literal["float32", "bfloat16"]

Elsewhere = Mapping[str, VelocityModel]
"""What answers for experts that stay at their sites, by site."""

Found = TypeVar("Found")
ASKED_AT_ONCE = 2  # of one site: it computes for one while the other is on its way


class ExpertPool:
    """K experts, loaded when they are asked.

    Args:
        loaders: One per site, in the ensemble's order.
        resident: The most experts in the memory of one device at once; None for all.
        largest_time: The largest time that every expert may be asked at; see `Expert`.
        devices: Where experts run, in turn: expert k on device k modulo their number. States come
            and answers leave on the first.
        offload: Keep what was let go of in the processor's memory instead of loading it again.
        precision: `bfloat16` multiplies matrices in it (autocast); states stay as they are.
        elsewhere: Experts by place that answer over a network. They take states on the processor,
            may be asked from several threads, and multiply in their own precision.

    Attributes:
        loads: How often each expert was loaded.
        calls: How many images each expert was asked about.
    """

    def __init__(
        self,
        loaders: Sequence[Loader],
        *,
        resident: int | None = None,
        largest_time: float = 1.0,
        devices: Sequence[torch.device | str] = ("cpu",),
        offload: bool = False,
        precision: Precision = "float32",
        elsewhere: Mapping[int, VelocityModel] | None = None,
    ) -> None:
        if resident is not None and resident < 1:
            raise ValueError(f"at least one expert has to be resident, got {resident}")
        if not devices:
            raise ValueError("experts need a device to run on")
        self.largest_time = largest_time
        self.devices = tuple(torch.device(device) for device in devices)
        self.device = self.devices[0]
        self.loads, self.calls = [0] * len(loaders), [0] * len(loaders)
        self._loaders = tuple(loaders)
        self._resident = len(loaders) if resident is None else resident
        self._offload, self._precision = offload, precision
        self._here: OrderedDict[int, VelocityModel] = OrderedDict()  # on all devices
        self._aside: dict[int, VelocityModel] = {}
        self._elsewhere = dict(elsewhere or {})
        self._threads = {
            site: ThreadPoolExecutor(ASKED_AT_ONCE, f"expert-{site}") for site in self._elsewhere
        }
        self._given_up, self._lock = Event(), Lock()

    @classmethod
    def of(
        cls,
        experts: Sequence[VelocityModel],
        *,
        devices: Sequence[torch.device | str] = ("cpu",),
        precision: Precision = "float32",
    ) -> Self:
        """Returns a pool of experts that are in memory already; they move to their devices."""
        times = [expert.largest_time for expert in experts if isinstance(expert, Expert)]
        loaders = [lambda expert=expert: expert for expert in experts]
        largest = min(times, default=1.0)
        return cls(loaders, largest_time=largest, devices=devices, precision=precision)

    def __len__(self) -> int:
        return len(self._loaders)

    @property
    def resident(self) -> tuple[int, ...]:
        """The experts on their devices, the one asked longest ago first."""
        return tuple(self._here)

    def device_of(self, site: int) -> torch.device:
        """Returns where an expert runs."""
        return self.devices[site % len(self.devices)]

    def load_all(self) -> None:
        """Loads as many experts as may be resident, so that a bad file is found now."""
        for site in range(min(len(self), self._resident * len(self.devices))):
            if site not in self._elsewhere:
                self._get(site)

    def ask(self, site: int, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns the velocity of one expert, `(B, C, H, W)`; arguments as for `Expert`."""
        if site in self._elsewhere:
            return self._ask_elsewhere(site, x_t, t, condition)
        expert, there = self._get(site), self.device_of(site)
        self.calls[site] += len(x_t)
        asked = None if condition is None else condition.to(there)
        if self._precision == "float32":
            return expert(x_t.to(there), t.to(there), asked).to(x_t.device)
        with torch.autocast(there.type, torch.bfloat16):
            return expert(x_t.to(there), t.to(there), asked).to(x_t)

    def _ask_elsewhere(
        self, site: int, x_t: Tensor, t: Tensor, condition: Condition | None
    ) -> Tensor:
        if self._given_up.is_set():
            raise RuntimeError("another site failed; nobody waits for this answer")
        here = torch.device("cpu")
        asked = None if condition is None else condition.to(here)
        answer = self._elsewhere[site](x_t.to(here), t.to(here), asked).to(x_t.device)
        with self._lock:
            self.calls[site] += len(x_t)
        return answer

    def gather(self, tasks: Sequence[tuple[int, Callable[[], Found]]]) -> Iterator[Found]:
        """Yields what tasks return, in their order; each asks one expert, named by its place.

        Those that ask experts elsewhere run at once, in threads. The others run in this thread,
        when their turn comes.
        """
        inference = torch.is_inference_mode_enabled()

        def run(task: Callable[[], Found]) -> Found:
            with torch.inference_mode(inference):  # of a thread, and this is another
                return task()

        running: dict[int, Future[Found]] = {
            place: self._threads[site].submit(run, task)
            for place, (site, task) in enumerate(tasks)
            if site in self._elsewhere
        }
        try:
            for place, (_, task) in enumerate(tasks):
                yield running[place].result() if place in running else task()
        except BaseException:
            self._given_up.set()
            for future in running.values():
                future.cancel()
            raise

    def _get(self, site: int) -> VelocityModel:
        if site in self._here:
            self._here.move_to_end(site)
            return self._here[site]
        place = site % len(self.devices)
        beside = [other for other in self._here if other % len(self.devices) == place]
        for gone in beside[: max(0, len(beside) - self._resident + 1)]:
            expert = self._here.pop(gone)
            if self._offload:
                self._aside[gone] = _moved(expert, torch.device("cpu"))
            del expert
        if site in self._aside:
            found = self._aside.pop(site)
        else:
            found = self._loaders[site]()
            self.loads[site] += 1
        self._here[site] = _moved(found, self.device_of(site))
        return found


def _moved(expert: VelocityModel, device: torch.device) -> VelocityModel:
    if isinstance(expert, Expert) and isinstance(expert.network, nn.Module):
        expert.network.to(device)
    return expert
