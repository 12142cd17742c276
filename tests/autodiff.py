"""Reverse-mode differentiation over NumPy float64, just large enough for the oracle.

A Tensor holds a value and its edges: pairs (parent, rule), where rule(g) turns the gradient of the
value into that parent's share of it.  `gradients` walks the graph once, from the output back, and
adds the shares up.  A rule may answer in the broadcast shape; `fold` sums it to the parent's.

Kinks follow the conventions of the losses: `minimum` passes the gradient to its first argument at
a tie, `clip` passes it on the closed interval.  Discrete choices (masks, indices, a maximum
used as a shift) enter as plain arrays and are constants.  Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Rule = Callable[[np.ndarray], np.ndarray]


class Tensor:
    """A float64 value in a graph of values.  A Tensor without edges is a leaf or a constant."""

    __array_ufunc__ = None  # ndarray + Tensor comes to Tensor.__radd__ instead of looping here

    def __init__(self, data: Any, edges: Iterable[tuple[Tensor, Rule]] = ()) -> None:
        self.data = np.asarray(data, dtype=np.float64)
        self.edges = tuple(edges)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def __float__(self) -> float:
        return float(self.data)

    # ---- arithmetic, with NumPy's broadcasting

    def __add__(self, other: Any) -> Tensor:
        other = as_tensor(other)
        return Tensor(self.data + other.data, [(self, lambda g: g), (other, lambda g: g)])

    def __neg__(self) -> Tensor:
        return Tensor(-self.data, [(self, lambda g: -g)])

    def __sub__(self, other: Any) -> Tensor:
        return self + -as_tensor(other)

    def __rsub__(self, other: Any) -> Tensor:
        return as_tensor(other) + -self

    def __mul__(self, other: Any) -> Tensor:
        other = as_tensor(other)
        return Tensor(self.data * other.data,
                      [(self, lambda g: g * other.data), (other, lambda g: g * self.data)])

    def __truediv__(self, other: Any) -> Tensor:
        return self * as_tensor(other) ** -1.0

    def __rtruediv__(self, other: Any) -> Tensor:
        return as_tensor(other) * self ** -1.0

    def __pow__(self, power: float) -> Tensor:
        return Tensor(self.data ** power,
                      [(self, lambda g: g * power * self.data ** (power - 1.0))])

    def __matmul__(self, other: Any) -> Tensor:
        """(..., n, m) @ (..., m, p); leading axes broadcast, both sides have two axes or more."""
        other = as_tensor(other)
        return Tensor(self.data @ other.data,
                      [(self, lambda g: g @ other.data.swapaxes(-1, -2)),
                       (other, lambda g: self.data.swapaxes(-1, -2) @ g)])

    __radd__ = __add__
    __rmul__ = __mul__

    # ---- shape and selection

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self.data.reshape(shape), [(self, lambda g: g.reshape(self.shape))])

    def transpose(self, *axes: int) -> Tensor:
        return Tensor(self.data.transpose(axes),
                      [(self, lambda g: g.transpose(np.argsort(axes)))])

    @property
    def T(self) -> Tensor:
        return self.transpose(1, 0)

    def __getitem__(self, key: Any) -> Tensor:
        """Slices and integer rows alike; an element taken twice gets both gradients."""
        def rule(g: np.ndarray) -> np.ndarray:
            out = np.zeros_like(self.data)
            np.add.at(out, key, g)
            return out
        return Tensor(self.data[key], [(self, rule)])

    # ---- reductions

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        def rule(g: np.ndarray) -> np.ndarray:
            if axis is not None and not keepdims:
                g = np.expand_dims(g, axis)
            return np.broadcast_to(g, self.shape)
        return Tensor(self.data.sum(axis=axis, keepdims=keepdims), [(self, rule)])

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        count = self.data.size if axis is None else self.shape[axis]
        return self.sum(axis, keepdims) * (1.0 / count)


def as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x)


def stop_gradient(x: Tensor) -> Tensor:
    return Tensor(x.data)


# ---- elementwise functions

def exp(x: Tensor) -> Tensor:
    y = np.exp(x.data)
    return Tensor(y, [(x, lambda g: g * y)])


def log(x: Tensor) -> Tensor:
    return Tensor(np.log(x.data), [(x, lambda g: g / x.data)])


def sigmoid(x: Tensor) -> Tensor:
    y = 0.5 * (1.0 + np.tanh(0.5 * x.data))
    return Tensor(y, [(x, lambda g: g * y * (1.0 - y))])


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without overflow; -log sigmoid(x) is softplus(-x)."""
    return Tensor(np.logaddexp(0.0, x.data),
                  [(x, lambda g: g * 0.5 * (1.0 + np.tanh(0.5 * x.data)))])


def where(mask: np.ndarray, a: Any, b: Any) -> Tensor:
    a, b = as_tensor(a), as_tensor(b)
    return Tensor(np.where(mask, a.data, b.data),
                  [(a, lambda g: np.where(mask, g, 0.0)), (b, lambda g: np.where(mask, 0.0, g))])


def minimum(a: Tensor, b: Tensor) -> Tensor:
    return where(a.data <= b.data, a, b)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    inside = (low <= x.data) & (x.data <= high)
    return Tensor(np.clip(x.data, low, high), [(x, lambda g: np.where(inside, g, 0.0))])


# ---- several tensors, rows, and the two sums everybody needs

def concat(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    ends = np.cumsum([p.shape[axis] for p in parts])

    def share(part: Tensor, end: int) -> Rule:
        rows = np.arange(end - part.shape[axis], end)
        return lambda g: np.take(g, rows, axis=axis)
    return Tensor(np.concatenate([p.data for p in parts], axis=axis),
                  [(p, share(p, int(end))) for p, end in zip(parts, ends)])


def scatter_add(values: Tensor, rows: np.ndarray, count: int) -> Tensor:
    """out (count, ...): out[rows[i]] += values[i]."""
    out = np.zeros((count, *values.shape[1:]))
    np.add.at(out, rows, values.data)
    return Tensor(out, [(values, lambda g: g[rows])])


def logsumexp(x: Tensor) -> Tensor:
    """Over the last axis, kept.  The shift is a constant: it cancels in the derivative."""
    shift = x.data.max(axis=-1, keepdims=True)
    return log(exp(x - shift).sum(axis=-1, keepdims=True)) + shift


def softmax(x: Tensor) -> Tensor:
    return exp(x - logsumexp(x))


# ---- the walk back

def fold(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes along which a value of this shape was broadcast."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    widened = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=widened, keepdims=True) if widened else g


def gradients(output: Tensor, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """d sum(output) / d input for each input; zeros where the output does not depend on it."""
    order: list[Tensor] = []
    seen: set[int] = set()
    stack = [(output, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in node.edges)
    grads = {id(output): np.ones_like(output.data)}
    for node in reversed(order):
        for parent, rule in node.edges:
            share = fold(rule(grads[id(node)]), parent.shape)
            grads[id(parent)] = grads[id(parent)] + share if id(parent) in grads else share
    return [grads.get(id(x), np.zeros_like(x.data)) for x in inputs]
