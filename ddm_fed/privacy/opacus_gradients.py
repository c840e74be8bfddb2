"""Clipped sums from Opacus: per-layer rules for per-row gradients, hooked onto the model.

Two traps decide how it is used here. A weight that is used past its module's forward gets no rule
and no error, so an engine is used only after `agreement` showed that it computes what a loop over
units does. And only whole chunks are given to it, without its optimizer and its loaders, whose
state survives a broken-off batch.

Source: Yousefpour et al. 2021, arXiv:2109.12298.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddm_fed.privacy.dpsgd import ROWS_AT_ONCE, Adding, Clipped, RowLoss, Weights, chunks


class HookGradients:
    """Per-unit gradients by Opacus' hooks, some units at a time; one backward pass per draw.

    Args:
        model: Called with the rows' network arguments.
        loss: Of rows.
        trained: The weights of `model` that are trained, by the names their gradients shall have;
            all others have `requires_grad` unset.
        rows_at_once: Bounds memory.
    """

    name = "opacus"

    def __init__(
        self,
        model: nn.Module,
        loss: RowLoss,
        trained: Mapping[str, nn.Parameter],
        *,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._model, self._loss, self._trained = model, loss, trained
        self._rows_at_once = rows_at_once

    def clipped_sum(self, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> Clipped:
        """Returns the sum over units of their clipped gradients; see `Gradients`.

        Raises:
            NotImplementedError: Opacus has no rule for a module of the model.
            ValueError: `weights` are not the model's own.
        """
        from opacus.grad_sample import GradSampleHooks

        own = self._trained
        if any(weights[name] is not value for name, value in own.items()):
            raise ValueError("this engine differentiates by the model's own weights only")
        adding = Adding(own, clip_norm)
        hooks: Any = GradSampleHooks(
            self._model, batch_first=True, loss_reduction="sum", strict=True
        )
        try:
            for chunk in chunks(rows, self._rows_at_once, own):
                adding.add(*self._per_unit(own, chunk))
        finally:
            hooks.cleanup()
            for value in own.values():
                value.grad = None
        return adding.result()

    def _per_unit(
        self, own: Mapping[str, nn.Parameter], chunk: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        draws = chunk[0].shape[1]
        sums: dict[str, Tensor] = {}
        losses = torch.zeros(len(chunk[0]))
        for draw in range(draws):
            found = self._loss(self._model, *(value[:, draw] for value in chunk))
            total = found.sum()
            with warnings.catch_warnings():
                # the first layer's input needs no gradient, and its hook works without
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                total.backward()  # type: ignore[no-untyped-call]
            losses = losses.to(found.device) + found.detach() / draws
            for name, value in own.items():
                each: Any = getattr(value, "grad_sample", None)
                if each is None:
                    raise NotImplementedError(f"Opacus has no gradient for {name}")
                sums[name] = each / draws if name not in sums else sums[name] + each / draws
                value.grad_sample = None  # type: ignore[attr-defined]
                value.grad = None
        return sums, losses
