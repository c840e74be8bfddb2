"""Which devices of this machine experts run on."""

from collections.abc import Sequence

import torch

from ddm_fed.errors import OptionError, guess


def chosen_devices(names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the devices asked for; without any, the GPU if there is one, else the processor.

    Raises:
        OptionError: a name means nothing, or this machine has no such device.
    """
    if not names:
        return ("cuda",) if torch.cuda.is_available() else ("cpu",)
    for name in names:
        kind, _, number = name.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
            raise OptionError(
                f"--device {name}: unknown device{guess(name, ('cpu', 'cuda'))}",
                hint="use cpu, cuda, or cuda:1 for the second GPU",
            )
        present = torch.cuda.device_count() if kind == "cuda" else 1
        if int(number or 0) >= present:
            raise OptionError(
                f"--device {name}: this machine has {present} of that kind",
                hint="leave --device out to use what there is",
            )
    return tuple(names)
