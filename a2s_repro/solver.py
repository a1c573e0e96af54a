"""Caffe's SGD and PyTorch's, and Caffe's learning-rate policies."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.sgd import sgd

from a2s_repro.errors import InputError, check_known

SOLVERS = ("caffe", "torch")
LR_POLICIES = ("step", "poly", "fixed", "multistep")
SHARED_DECAY = ("per_stream", "once")
FORMER_NAMES = {"per_branch": "per_stream", "branches": "shared_by"}
"""Names in files of version 0.1 -> their names today."""


@dataclass(frozen=True)
class LearningRate:
    """Learning-rate schedule; call it with the 0-based iteration to get the rate of the update.

    fixed: base_lr. step: base_lr * gamma^(iteration div stepsize). multistep: base_lr * gamma^(stepvalues passed).
    poly: base_lr * (1 - iteration/max_iter)^power. As in Caffe's solver, parameters and result are rounded to float32,
    and the power is computed in double.

    Raises:
        InputError: an unknown policy, or an impossible schedule.
    """

    base_lr: float = 1e-3
    policy: str = "step"
    gamma: float = 0.1
    stepsize: int = 2000
    stepvalues: tuple[int, ...] = ()
    power: float = 0.9
    max_iter: int = 6000

    def __post_init__(self) -> None:
        check_known("lr_policy", self.policy, LR_POLICIES)
        if not self.base_lr > 0:
            raise InputError(f"base_lr is {self.base_lr}; it must be positive.")
        if self.policy == "step" and self.stepsize < 1:
            raise InputError(f"stepsize is {self.stepsize}; it must be at least one iteration.")
        if self.policy == "multistep" and not self.stepvalues:
            raise InputError("lr_policy multistep needs the iterations at which the rate drops (--steps).")
        if list(self.stepvalues) != sorted(self.stepvalues):
            raise InputError(f"the step values {' '.join(map(str, self.stepvalues))} must ascend.")

    def __call__(self, iteration: int) -> float:
        base_lr, gamma, power = (float(np.float32(value)) for value in (self.base_lr, self.gamma, self.power))
        if self.policy == "poly":
            progress = np.float32(iteration) / np.float32(self.max_iter)
            factor = float(np.float32(1) - progress) ** power
        else:
            factor = gamma ** self.drops(iteration)
        return float(np.float32(base_lr * factor))

    def drops(self, iteration: int) -> int:
        """Number of multiplications by gamma up to the iteration (Caffe's current_step)."""
        if self.policy == "step":
            return iteration // self.stepsize
        return bisect_right(self.stepvalues, iteration) if self.policy == "multistep" else 0


class CaffeSGD(torch.optim.Optimizer):
    """SGD with momentum and L2 decay by the rule of Caffe's solver, which keeps the learning rate inside the history.

    For a weight w, its gradient g and its history h, with rate = lr * lr_mult and decay = weight_decay * decay_mult:

        h = momentum * h + rate * (g + decay * w)
        w = w - h

    torch.optim.SGD multiplies the history by the rate instead. Both agree while the rate is constant. After a change,
    Caffe's history still contains earlier gradients at their earlier rates.

    In the authors' Caffe every sharing copy of a weight has its own slot: gradient, history, lr_mult, decay_mult. All
    slots read the weight before the update, and their updates add up. Here a slot is a parameter, and the copies of a
    weight are parameters that share its storage, in separate groups. Copies with equal multipliers can share one slot,
    because the rule is linear: one parameter whose gradient is the sum of theirs, decayed `shared_by` times.

    Args:
        groups: result of `parameter_groups`: dicts with `params` and optionally `lr_mult`, `decay_mult`, `shared_by`
            (default 1) and `owner` (default True; False for a group of copies). lr_mult 0 freezes a group: no gradient,
            no history, no decay.
        lr: rate of the next update; set it before each update with `set_lr`.
        iter_size: number of backward passes summed in a gradient; g is the gradient divided by it.
        clip_gradients: maximum total norm of the owners' gradients, before the division by iter_size; larger gradients
            are scaled down. As in Caffe, the copies' gradients are neither counted nor scaled.

    Raises:
        InputError: an impossible setting, or clip_gradients with a slot shared by several copies.
    """

    HISTORY: ClassVar[str] = "history"
    """Key of a parameter's history in the solver's state."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        iter_size: int = 1,
        clip_gradients: float | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise InputError(f"{name} is {value}; it must not be negative.")
        if clip_gradients is not None and not clip_gradients > 0:
            raise InputError(f"clip_gradients is {clip_gradients}; the longest gradient must be positive.")
        if iter_size < 1:
            raise InputError(f"iter_size is {iter_size}; it must be at least 1.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "iter_size": iter_size,
            "lr_mult": 1,
            "decay_mult": 1,
            "shared_by": 1,
            "owner": True,
        }
        super().__init__(groups, defaults)
        self.clip_gradients = clip_gradients
        for group in self.param_groups:
            if clip_gradients is not None and group["shared_by"] > 1:
                raise InputError("clip_gradients applies only to the owners' gradients: give every copy a slot.")
            if len({parameter.data_ptr() for parameter in group["params"]}) < len(group["params"]):
                raise InputError("parameters that share storage need separate groups.")
        _freeze(self.param_groups)

    def set_lr(self, lr: float) -> None:
        """Sets the rate of the next update, before the groups' lr_mult."""
        for group in self.param_groups:
            group["lr"] = lr

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a `state_dict()`, also one that version 0.1 wrote."""
        groups = state_dict["param_groups"]
        groups = [{FORMER_NAMES.get(name, name): value for name, value in group.items()} for group in groups]
        super().load_state_dict(state_dict | {"param_groups": groups})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clipping = self._clipping()
        moved_copies: list[tuple[nn.Parameter, torch.Tensor]] = []
        for group in sorted(self.param_groups, key=lambda group: group["owner"]):  # copies first
            if group["lr_mult"] == 0:
                continue
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            if clipping is not None and group["owner"]:
                gradients = [gradient * clipping for gradient in gradients]
            histories = [self._history(weight) for weight in weights]
            # The gradient is iter_size times g, so the rate is divided by iter_size and the decay multiplied by it.
            rate = group["lr"] * group["lr_mult"] / group["iter_size"]
            decay = group["weight_decay"] * group["decay_mult"] * group["shared_by"] * group["iter_size"]
            if group["owner"]:
                _update(weights, gradients, histories, rate, group["momentum"], decay)
            else:  # the histories alone: all slots read the weights before the update
                _update([weight.clone() for weight in weights], gradients, histories, rate, group["momentum"], decay)
                moved_copies += zip(weights, histories, strict=True)
        for weight, history in moved_copies:
            weight.sub_(history)
        return loss

    def _history(self, weight: nn.Parameter) -> torch.Tensor:
        state = self.state[weight]
        state[self.HISTORY] = _laid_out_as(weight, state[self.HISTORY]) if state else torch.zeros_like(weight)
        return state[self.HISTORY]

    def _clipping(self) -> torch.Tensor | None:
        """The factor of the owners' gradients, a scalar; None if they are not clipped."""
        if self.clip_gradients is None:
            return None
        owners = [parameter for group in self.param_groups if group["owner"] for parameter in group["params"]]
        norm = nn.utils.get_total_norm([owner.grad for owner in owners if owner.grad is not None])
        return (self.clip_gradients / norm).clamp(max=1)


def _update(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    histories: Sequence[torch.Tensor],
    rate: float,
    momentum: float,
    decay: float,
) -> None:
    """h = momentum * h + rate * (g + decay * w); w = w - h, in place.

    This is torch's rule at the learning rate 1, with Caffe's rate as 1 - dampening. torch's fused kernel passes through
    memory once, from end to end, so it needs three tensors of one layout without gaps. On the CPU it is wrong for
    dtypes of 16 bits up to torch 2.13 (pytorch/pytorch#191763).
    """
    gradients = [_laid_out_as(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True)]
    if momentum == 0:  # torch's rule would skip histories and dampening; 1 times a history of 0 is the same sum
        for history in histories:
            history.zero_()
    sgd(
        list(weights),
        gradients,
        list(histories),
        fused=all(w.itemsize >= 4 and w.stride() == h.stride() for w, h in zip(weights, histories, strict=True)),
        lr=1,
        momentum=momentum or 1,
        dampening=1 - rate,
        weight_decay=decay,
        nesterov=False,
        maximize=False,
    )


def _laid_out_as(weight: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the weight's layout without gaps, which is that of `empty_like`; copied unless it has it."""
    layout = torch.empty_like(weight, device="meta").stride()
    return tensor if tensor.stride() == layout else torch.empty_like(weight).copy_(tensor)


class TorchSGD(torch.optim.SGD):
    """torch.optim.SGD on the groups of CaffeSGD: the learning rate is outside the history.

        v = momentum * v + g / iter_size + shared_by * weight_decay * decay_mult * w;  w = w - lr * lr_mult * v

    Args:
        groups: result of `parameter_groups` for a net without copies. lr_mult 0 freezes a group.
        iter_size: number of backward passes summed in a gradient.
    """

    HISTORY: ClassVar[str] = "momentum_buffer"
    """Key of a parameter's v in the solver's state."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, momentum: float = 0.9, weight_decay: float = 1e-4, iter_size: int = 1
    ) -> None:
        decayed = [
            group | {"weight_decay": weight_decay * group["decay_mult"] * group["shared_by"], "iter_size": iter_size}
            for group in groups
        ]
        super().__init__(decayed, lr=0, momentum=momentum)
        _freeze(self.param_groups)

    def set_lr(self, lr: float) -> None:
        """Sets the rate of the next update, before the groups' lr_mult."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_mult"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; divides the gradients by iter_size in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(group["iter_size"])
        super().step()
        return loss


def _freeze(groups: Iterable[dict[str, Any]]) -> None:
    """Disables gradients for groups with lr_mult 0."""
    for group in groups:
        if group["lr_mult"] == 0:
            for parameter in group["params"]:
                parameter.requires_grad_(False)


class RuledNet(Protocol):
    """The part of `models.Net` that `parameter_groups` uses."""

    @property
    def copies(self) -> "Sequence[RuledNet]": ...

    def keyed_parameters(self) -> dict[str, nn.Parameter]: ...

    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> Mapping[str, Any]: ...


def parameter_groups(
    model: RuledNet,
    shared_decay: str = "per_stream",
    lr_mult: Mapping[str, float] | None = None,
    uniform_layers: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for a solver from `model.parameter_rules(lr_mult)`, one group per distinct rule.

    In a net with copies (`ShareNet.copy_per_stream`) every copy has its own slot, otherwise the streams share one.

    Args:
        shared_decay: "per_stream" decays a shared parameter once for each stream, as in the authors' Caffe; "once"
            decays it once, as in DeepLab v2 and today's Caffe.
        lr_mult: learning-rate multipliers of layers that deviate from the net's rule.
        uniform_layers: whether biases and batch norms have the learning rate and decay of their layer's weights.

    Raises:
        InputError: another value of shared_decay.
    """
    shared_decay = FORMER_NAMES.get(shared_decay, shared_decay)
    check_known("shared_decay", shared_decay, SHARED_DECAY)
    rules = model.parameter_rules(lr_mult)
    if uniform_layers:
        rules = {
            name: rule._replace(lr_mult=rules[f"{name.rpartition('.')[0]}.weight"].lr_mult, decay_mult=1)
            for name, rule in rules.items()
        }
    groups: dict[tuple, list[nn.Parameter]] = {}
    for index, stream in enumerate((model, *model.copies)):
        for name, parameter in stream.keyed_parameters().items():
            rule = rules[name]
            decay_mult = rule.decay_mult if index == 0 or shared_decay == "per_stream" else 0
            shared_by = rule.shared_by if shared_decay == "per_stream" and not model.copies else 1
            groups.setdefault((index, rule.lr_mult, decay_mult, shared_by), []).append(parameter)
    return [
        {"params": params, "lr_mult": lr_mult, "decay_mult": decay_mult, "shared_by": shared_by, "owner": index == 0}
        for (index, lr_mult, decay_mult, shared_by), params in groups.items()
    ]
