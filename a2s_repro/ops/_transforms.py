"""Operators under torch.func's transforms and forward-mode derivatives.

torch.library registers an operator's gradient, but no forward-mode derivative and no batching rule: a dual tensor would
come out without its tangent. `call` therefore wraps an eager call in an autograd.Function, which has both. A compiled
or exported graph holds the operator itself.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How an operator is differentiated and batched."""

    name: str
    operator: Callable
    """The torch operator, or a function of torch's operators below autograd."""
    setup_context: Callable | None
    backward: Callable
    """As for torch.library.register_autograd."""
    linear: bool = False
    """Whether the results are linear in all tensors together: the operator is then its own forward-mode derivative."""
    differentiable: bool = True
    promote: bool = False
    """Whether autocast casts the tensors to their widest dtype: before they are saved for the backward."""
    batched: bool = True
    """Whether the batch is the first axis of all tensors and results, so that vmap can fold its axis into it."""


def call(rule: Rule, *args: Any) -> Any:
    """The results of an operator, which transforms see."""
    if torch.compiler.is_compiling():
        return rule.operator(*args)
    tensors: list[Tensor] = []
    form = _Form([_placed(argument, tensors) for argument in args])
    device = tensors[0].device.type
    if rule.promote and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        widest = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        tensors = [tensor.to(widest) for tensor in tensors]
    flat = _function_of(rule).apply(rule, form, *tensors)
    results = _filled(form.results, flat)
    return tuple(results) if isinstance(results, list) else results


@dataclass(slots=True)
class _Place:
    """Stands for a tensor in a form."""

    index: int


@dataclass(slots=True)
class _Form:
    """An operator's arguments, and once it was called its results, with a _Place for each tensor."""

    arguments: list
    results: Any = None


def _placed(value: Any, tensors: list[Tensor]) -> Any:
    """The value with a _Place for each tensor, which is appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Place(len(tensors) - 1)
    return [_placed(item, tensors) for item in value] if isinstance(value, list | tuple) else value


def _filled(form: Any, tensors: Sequence[Tensor | None]) -> Any:
    if isinstance(form, _Place):
        return tensors[form.index]
    return [_filled(item, tensors) for item in form] if isinstance(form, list) else form


def _at_places(form: Any, values: Any) -> list:
    """The values at the places of a form, in order; a missing value of a list is None for each place."""
    if isinstance(form, _Place):
        return [values]
    if not isinstance(form, list):
        return []
    values = [None] * len(form) if values is None else values
    return [value for part, given in zip(form, values, strict=True) for value in _at_places(part, given)]


class _Call(torch.autograd.Function):
    """A call with flat tensors in and out, as autograd and torch.func require."""

    @staticmethod
    def forward(rule: Rule, form: _Form, *tensors: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        form.results = _placed(rule.operator(*_filled(form.arguments, tensors)), results)
        return tuple(results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.rule, ctx.form, *tensors = inputs
        if ctx.rule.linear:
            ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        if not ctx.rule.differentiable:
            ctx.mark_non_differentiable(*output)
        elif ctx.rule.setup_context:
            ctx.rule.setup_context(ctx, _filled(ctx.form.arguments, tensors), _filled(ctx.form.results, output))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        grads = _filled(ctx.form.results, grads)
        gradients = ctx.rule.backward(ctx, *(grads if isinstance(grads, list) else [grads]))
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return None, None, *_at_places(ctx.form.arguments, gradients)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.rule.differentiable:
            return (None,) * len(_at_places(ctx.form.results, ctx.form.results))
        if not ctx.rule.linear:
            raise _unsupported(ctx.rule, "forward-mode derivatives are")
        given = [
            torch.zeros(shape, dtype=dtype, device=device) if tangent is None else tangent
            for tangent, (shape, dtype, device) in zip(tangents, ctx.like, strict=True)
        ]
        results: list[Tensor] = []
        _placed(call(ctx.rule, *_filled(ctx.form.arguments, given)), results)
        return tuple(results)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, rule: Rule, form: _Form, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple]:
        """The mapped axis joins the batch axis, which every tensor has first."""
        if not rule.batched:
            raise _unsupported(rule, "vmap is")
        size = info.batch_size
        spread = [
            tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[2:], strict=True)
        ]
        inner = _Form(form.arguments)
        results = _function_of(rule).apply(rule, inner, *(tensor.flatten(0, 1) for tensor in spread))
        form.results = inner.results
        batch = spread[0].size(1)
        return tuple(result.unflatten(0, (size, batch)) for result in results), (0,) * len(results)


# torch reads the signature of `forward` at every call. With a stored one a call takes 25 microseconds less.
vars(_Call.forward)["__signature__"] = inspect.signature(_Call.forward)


@functools.cache
def _function_of(rule: Rule) -> type[torch.autograd.Function]:
    """A class of the operator's name, which `grad_fn` shows."""
    words = rule.name.rpartition("::")[2].split("_")
    return type(f"_{''.join(word.capitalize() for word in words)}", (_Call,), {})


def _unsupported(rule: Rule, what: str) -> RuntimeError:
    return RuntimeError(
        f"{rule.name}: {what} not supported; run the forward pass under a2s_repro.ops.use_backend('reference')."
    )


def no_double_backward(name: str, ctx: Any, *grads: Any) -> None:
    """The gradient of an operator that is a gradient."""
    raise RuntimeError(
        f"{name}: double backward is not supported; "
        "run the forward pass under a2s_repro.ops.use_backend('reference') to differentiate twice."
    )


class Calls:
    """The operators of a namespace as attributes, called through `call`."""

    def __init__(self, rules: dict[str, Rule]) -> None:
        self._rules = rules

    def __getattr__(self, name: str) -> Callable:
        return functools.partial(call, self._rules[name])
