"""Clipped sums without the gradient of each unit: out of what every linear layer saw.

The gradient that a unit has by a linear layer's weight is g^T a, of the layer's inputs a and the
gradients g of its outputs. Both are recorded in one forward and one backward pass. Of them follow
the norm of the unit's gradient, which need not be made for it, and, once it is known by what each
unit is multiplied, the clipped sum, as one product for all units.

The bound holds by construction, as in `FunctionalGradients`: the forward pass is a function call
of each unit's own (`vmap`), so that a unit's a and g follow from its own rows; and norm and sum are
about the very same a and g. A use of a weight that nothing is known of could only be missing in
both, and is refused.

Shapes: U units, K rows of each, T tokens of a row, n = K T, I and O the widths in and out.

Source: Bu et al. 2022, arXiv:2210.00038 (book-keeping); Goodfellow 2015, arXiv:1510.01799 (norms).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ddm_fed.privacy.dpsgd import ROWS_AT_ONCE, Clipped, RowLoss, Weights, factors_of

Take = Callable[[Tensor, Tensor], None]

RECORD_BYTES = 1 << 29
# The weights of other layers are given to each unit as its own, which pays while they are few.
LARGEST_SHARE = 0.125
# The norm of g^T a is made of a a^T and g g^T where those take at most this share of its work.
WORTH_IT = 0.5
# By how much rounding may understate a norm that is made so, in what it were if nothing cancelled:
# so much is added.
ROUNDING = 1e-6


class RecordedGradients:
    """Clipped sums out of what linear layers saw, some units at a time.

    Args:
        model: Called with the rows' network arguments.
        loss: Of rows.
        expand: As for `FunctionalGradients`.
        rows_at_once: Bounds memory.
    """

    name = "recorded"

    def __init__(
        self,
        model: nn.Module,
        loss: RowLoss,
        *,
        expand: Callable[[Weights], Mapping[str, Tensor]] | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._model, self._loss, self._rows_at_once = model, loss, rows_at_once
        self._expand = expand or (lambda weights: weights)
        self._bytes_of_one: dict[torch.Size, int] = {}

    def clipped_sum(self, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> Clipped:
        """Returns the sum over units of their clipped gradients; see `Gradients`.

        Raises:
            NotImplementedError: weights are used in a way that this engine knows nothing of.
        """
        values = {name: value.detach() for name, value in weights.items()}
        total = {name: torch.zeros_like(value) for name, value in values.items()}
        loss, clipped, units = 0.0, 0, len(rows[0])
        size = self._units_at_once(values, rows) if units else 1
        for start in range(0, units, size):
            losses, record = self._recorded(values, [value[start : start + size] for value in rows])
            factors = record.add_to(total, clip_norm)
            loss += float(torch.nan_to_num(losses).sum())
            clipped += int((factors < 1).sum())
        return Clipped(total, loss, clipped)

    def _units_at_once(self, values: Weights, rows: Sequence[Tensor]) -> int:
        """Returns how many units' records fit into memory: it depends on shapes alone."""
        shape = rows[0].shape[1:]
        if shape not in self._bytes_of_one:
            _, record = self._recorded(values, [value[:1] for value in rows])
            self._bytes_of_one[shape] = record.bytes
        by_rows = self._rows_at_once // shape[0]
        most = max(1, min(by_rows, RECORD_BYTES // self._bytes_of_one[shape]))
        parts = -(-len(rows[0]) // most)
        return -(-len(rows[0]) // parts)  # of much the same size

    def _recorded(self, values: Weights, part: Sequence[Tensor]) -> tuple[Tensor, "_Record"]:
        """Returns the losses `(U,)` of some units, and their gradients."""
        # these take long to load, and most commands need none of it
        from torch.func import functional_call, vmap

        linear = self._linear(values)
        # a leaf per unit, which takes no memory of its own
        own = {
            name: value.expand(len(part[0]), *value.shape).requires_grad_()
            for name, value in values.items()
            if id(value) not in linear
        }
        watch = _Watch(linear)

        def unit_loss(mine: Weights, *unit: Tensor) -> Tensor:
            full = dict(self._expand({**values, **mine}))

            def network(*arguments: object) -> Tensor:
                answer: Tensor = functional_call(self._model, full, arguments)
                return answer

            with watch:
                return self._loss(network, *unit).mean()

        losses = vmap(unit_loss, randomness="error")(own, *part)
        leaves = [watch.start, *own.values()]
        _, *found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        for name, gradient in zip(own, found, strict=True):
            if gradient is not None:
                watch.record.take(name, gradient)
        return losses.detach(), watch.record

    def _linear(self, values: Weights) -> dict[int, str]:
        """Returns the names of the trained weights of linear layers, by the tensors' identities.

        Raises:
            NotImplementedError: most trained weights are others.
        """
        names, full = {id(value): name for name, value in values.items()}, self._expand(values)
        found: dict[int, str] = {}
        for module, layer in self._model.named_modules():
            own = [id(full.get(f"{module}.{which}".lstrip("."))) for which in ("weight", "bias")]
            if isinstance(layer, nn.Linear) and own[0] in names:
                found |= {key: names[key] for key in own if key in names}
        others = sum(value.numel() for value in values.values() if id(value) not in found)
        if others > LARGEST_SHARE * sum(value.numel() for value in values.values()):
            raise NotImplementedError("most trained weights are not those of linear layers")
        return found


class _Watch(TorchFunctionMode):
    """Takes the calls of linear layers while it is entered.

    Args:
        linear: Names of weights that only linear layers may use, by identity.
    """

    def __init__(self, linear: Mapping[int, str]) -> None:
        super().__init__()
        self._linear = linear
        self.record = _Record()
        # all layers hang on it, so that a backward pass towards it comes by each of them
        self.start = torch.zeros((), requires_grad=True)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns what `func` does, or its recording twin."""
        if func is functional.linear:
            return self._call(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention and len(args) in (3, 4) and not kwargs:
            q, k, v, mask = (*args, None)[:4]
            return _Attention.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
        self._require_none_of_ours(func, [*args, *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))

    def _call(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: A002
        own, own_bias = self._linear.get(id(weight)), self._linear.get(id(bias))
        if own is None:
            self._require_none_of_ours(functional.linear, [input, bias])
            return functional.linear(input, weight, bias)
        self._require_none_of_ours(functional.linear, [input])
        layer = _Layer(weight, partial(self.record.take_linear, own, own_bias), self.start)
        return _OfEachUnit.apply(input, bias, layer)  # type: ignore[no-untyped-call]

    def _require_none_of_ours(self, func: Any, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self._require_none_of_ours(func, value)
            elif id(value) in self._linear:
                name = self._linear[id(value)]
                raise NotImplementedError(f"{name} is used by {func}, not by a linear layer")


class _Layer:
    """What a call of a linear layer needs and has of no unit; one object costs the least."""

    def __init__(self, weight: Tensor, take: Take, start: Tensor) -> None:
        self.weight, self.take, self.start = weight, take, start


class _OfEachUnit(torch.autograd.Function):
    """A linear layer, as a unit's own function calls it."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, layer: "_Layer") -> Tensor:
        raise NotImplementedError("a linear layer is asked about what is not of a unit")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        _info: Any,
        in_dims: Sequence[int | None],
        x: Tensor,
        bias: Tensor | None,
        layer: "_Layer",
    ) -> tuple[Tensor, int]:
        """Returns the outputs of all units, and that their first axis is the units'."""
        if in_dims[0] is None or in_dims[1] is not None:
            raise NotImplementedError("a linear layer is asked about what is not of a unit")
        arguments = (x.movedim(in_dims[0], 0), layer.weight, bias, layer.take, layer.start)
        return _OfAllUnits.apply(*arguments), 0  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """Fused attention, which by itself knows nothing of units."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError("attention is asked about what is not of a unit")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        _info: Any, in_dims: Sequence[int | None], *given: Tensor | None
    ) -> tuple[Tensor, int]:
        """Returns every token's mixture, of queries, keys and values `(U, K, heads, T, E)`.

        The fourth argument is the mask, `(U, K, ...)` as well, or None.
        """
        moved = [
            x.movedim(axis, 0).flatten(0, 1)
            for x, axis in zip(given, in_dims, strict=True)
            if x is not None and axis is not None
        ]
        if len(moved) != sum(x is not None for x in given):
            raise NotImplementedError("attention is asked about what is not of a unit")
        units = given[0].shape[in_dims[0] or 0] if given[0] is not None else 0
        q, k, v, *mask = moved
        mixed = functional.scaled_dot_product_attention(q, k, v, mask[0] if mask else None)
        return mixed.view(units, -1, *mixed.shape[1:]), 0


class _OfAllUnits(torch.autograd.Function):
    """A linear layer that keeps what it saw; x `(U, K, ..., I)`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, take: Take, _start: Tensor
    ) -> Tensor:
        ctx.x, ctx.weight, ctx.take = x.detach(), weight, take
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.take(ctx.x, gradients[0])
        wanted = ctx.needs_input_grad[0]
        return (gradients[0] @ ctx.weight if wanted else None), None, None, None, None


class _Record:
    """The gradients of some units, as far as they have to be made."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}

    def take(self, name: str, gradients: Tensor) -> None:
        """Adds to the gradients by a weight, `(U, ...)`."""
        known = self._made.get(name)
        self._made[name] = gradients if known is None else known + gradients

    def take_linear(self, weight: str, bias: str | None, x: Tensor, gradients: Tensor) -> None:
        """Adds to the gradients by a linear layer's weights.

        Args:
            weight: Its name.
            bias: Its name, if it is trained.
            x: What the layer was given, `(U, K, ..., I)`.
            gradients: Of its outputs, `(U, K, ..., O)`.
        """
        a, g = x.flatten(1, -2), gradients.flatten(1, -2)
        if bias is not None:
            self.take(bias, g.sum(1))
        if weight in self._pairs:  # the layer was used before, and a norm is that of the sum
            before = self._pairs.pop(weight)
            self.take(weight, before[1].mT @ before[0])
        if weight not in self._made and cheap_norm(a, g):
            self._pairs[weight] = (a, g)
        else:
            self.take(weight, g.mT @ a)

    @property
    def bytes(self) -> int:
        """How much memory they take."""
        kept = [*self._made.values(), *(value for pair in self._pairs.values() for value in pair)]
        return sum(value.numel() * value.element_size() for value in kept)

    def add_to(self, total: Mapping[str, Tensor], clip_norm: float) -> Tensor:
        """Adds the units' clipped gradients to `total`; returns their factors `(U,)`."""
        squares = [torch.linalg.vector_norm(v.flatten(1), dim=1) ** 2 for v in self._made.values()]
        squares += [squared_norms(a, g) for a, g in self._pairs.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        factors, bad = factors_of(norms, clip_norm), ~torch.isfinite(norms)
        if bool(bad.any()):
            self._forget(bad)
        for name, value in self._made.items():
            total[name] += (factors @ value.flatten(1)).view_as(total[name])
        for name, (a, g) in self._pairs.items():
            scaled = g * factors[:, None, None]
            total[name].addmm_(scaled.flatten(0, 1).mT, a.flatten(0, 1))
        return factors

    def _forget(self, units: Tensor) -> None:
        """Makes the gradients of `units (U,)`, a mask, zero: nothing times what is not finite."""

        def without(value: Tensor) -> Tensor:
            return value.masked_fill(units.view(-1, *(1 for _ in value.shape[1:])), 0.0)

        self._made = {name: without(value) for name, value in self._made.items()}
        self._pairs = {name: (without(a), without(g)) for name, (a, g) in self._pairs.items()}


def cheap_norm(a: Tensor, g: Tensor) -> bool:
    """Says whether the norms of g^T a, of a `(U, n, I)` and g `(U, n, O)`, need not make it."""
    n, wide, out = a.shape[1], a.shape[2], g.shape[2]
    return n == 1 or n * (wide + out) <= WORTH_IT * wide * out


def squared_norms(a: Tensor, g: Tensor) -> Tensor:
    """Returns the squared norm of each g^T a, `(U,)`: rather too much than too little.

    Args:
        a: `(U, n, I)`.
        g: `(U, n, O)`.
    """
    if a.shape[1] == 1:
        return (a.square().sum(2) * g.square().sum(2))[:, 0]
    inner, outer = a @ a.mT, g @ g.mT  # (U, n, n)
    lengths = (inner.diagonal(dim1=1, dim2=2) * outer.diagonal(dim1=1, dim2=2)).sqrt().sum(1)
    return (inner * outer).sum((1, 2)) + ROUNDING * lengths.square()
