"""The experts of an ensemble, of which only some need to be in memory at once.

An ensemble of K experts takes K times the memory of one model, but a step needs one expert at a
time. The pool loads an expert when it is asked and lets go of the one that was asked longest ago,
before it loads another, so never more than `resident` are there.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ddm_fed.flows import Condition, Expert, VelocityModel

Loader = Callable[[], VelocityModel]
"""Reads an expert; called again whenever the pool has let go of it."""

Precision = Literal["float32", "bfloat16"]


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
            self._get(site)

    def ask(self, site: int, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns the velocity of one expert, `(B, C, H, W)`; arguments as for `Expert`."""
        expert, there = self._get(site), self.device_of(site)
        self.calls[site] += len(x_t)
        asked = None if condition is None else condition.to(there)
        if self._precision == "float32":
            return expert(x_t.to(there), t.to(there), asked).to(x_t.device)
        with torch.autocast(there.type, torch.bfloat16):
            return expert(x_t.to(there), t.to(there), asked).to(x_t)

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
