"""Caffe's SGD and PyTorch's, and Caffe's learning-rate policies."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from a2s_repro.errors import InputError

SOLVERS = ("caffe", "torch")
LR_POLICIES = ("step", "poly", "fixed", "multistep")
SHARED_DECAY = ("per_branch", "once")


@dataclass(frozen=True)
class LearningRate:
    """The rate of each update; call it with the 0-based iteration.

    fixed: base_lr. step: base_lr * gamma^(iteration div stepsize). multistep: base_lr * gamma^(stepvalues passed).
    poly: base_lr * (1 - iteration/max_iter)^power. Parameters and result are rounded to float32 and the power is taken
    in double, as Caffe's solver does.

    Raises:
        InputError: an unknown policy, or a schedule that is not possible.
    """

    base_lr: float = 1e-3
    policy: str = "step"
    gamma: float = 0.1
    stepsize: int = 2000
    stepvalues: tuple[int, ...] = ()
    power: float = 0.9
    max_iter: int = 6000

    def __post_init__(self) -> None:
        if self.policy not in LR_POLICIES:
            raise InputError(f"lr_policy '{self.policy}' is not known; it is one of {', '.join(LR_POLICIES)}.")
        if not self.base_lr > 0:
            raise InputError(f"base_lr is {self.base_lr}; it must be positive.")
        if self.policy == "step" and self.stepsize < 1:
            raise InputError(f"stepsize is {self.stepsize}; it must be at least one iteration.")
        if list(self.stepvalues) != sorted(self.stepvalues):
            raise InputError(f"the step values {self.stepvalues} must ascend.")

    def __call__(self, iteration: int) -> float:
        base_lr, gamma, power = (float(np.float32(value)) for value in (self.base_lr, self.gamma, self.power))
        if self.policy == "poly":
            progress = np.float32(iteration) / np.float32(self.max_iter)
            factor = float(np.float32(1) - progress) ** power
        else:
            factor = gamma ** self.drops(iteration)
        return float(np.float32(base_lr * factor))

    def drops(self, iteration: int) -> int:
        """How many times the rate was multiplied by gamma until then (Caffe's current_step)."""
        if self.policy == "step":
            return iteration // self.stepsize
        return bisect_right(self.stepvalues, iteration) if self.policy == "multistep" else 0


class CaffeSGD(torch.optim.Optimizer):
    """SGD with momentum and L2 decay as Caffe's solver does it: the learning rate is inside the history.

        h = momentum * h + lr * lr_mult * (g / iter_size + branches * weight_decay * decay_mult * w);  w = w - h

    It differs from torch.optim.SGD after a change of rate: the history keeps the rates it was made with.

    The authors' Caffe gives every sharing copy of a weight a slot of its own: gradient, history, lr_mult, decay_mult.
    All slots see the weight as it was before the update, and their updates add up. Here a slot is a parameter, and the
    copies of a weight are parameters that share its storage, each in a group of its own. Copies with equal multipliers
    need one slot only, because the rule is linear: one parameter whose gradient is the sum of theirs, decayed
    `branches` times.

    Args:
        groups: as `parameter_groups` makes them: dicts with `params` and optionally `lr_mult`, `decay_mult`,
            `branches` (1 each) and `owner` (True; False for a group of copies). lr_mult 0 freezes a group: no gradient,
            no history, no decay.
        lr: rate of the next update; set it before each by `set_lr`.
        iter_size: how many backward passes are summed in a gradient.
        clip_gradients: where the owners' gradients together, before the division by iter_size, are longer than this,
            they are scaled down to it. The copies' are neither counted nor scaled, as in Caffe.

    Raises:
        InputError: a setting that is not possible; clipping gradients that `branches` copies have in common.
    """

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
            raise InputError(f"iter_size is {iter_size}; an update takes at least one pass.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "iter_size": iter_size,
            "lr_mult": 1,
            "decay_mult": 1,
            "branches": 1,
            "owner": True,
        }
        super().__init__(groups, defaults)
        self.clip_gradients = clip_gradients
        for group in self.param_groups:
            if clip_gradients is not None and group["branches"] > 1:
                raise InputError("clip_gradients looks at the owners' gradients alone: give every copy a slot.")
            if len({parameter.data_ptr() for parameter in group["params"]}) < len(group["params"]):
                raise InputError("parameters that share their storage need groups of their own.")
        _freeze(self.param_groups)

    def set_lr(self, lr: float) -> None:
        """Sets the rate of the next update, before the groups' lr_mult."""
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clipping = self._clipping()
        updates = []
        for group in sorted(self.param_groups, key=lambda group: group["owner"]):  # copies see the weights as they were
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights or group["lr_mult"] == 0:
                continue
            gradients = [_laid_out_as(weight, weight.grad) for weight in weights]
            histories = [self._history(weight) for weight in weights]
            if clipping is not None and group["owner"]:
                gradients = torch._foreach_mul(gradients, clipping)
            rate = group["lr"] * group["lr_mult"] / group["iter_size"]
            torch._fused_sgd_(
                [_flat(weight if group["owner"] else weight.clone()) for weight in weights],
                [_flat(gradient) for gradient in gradients],
                [_flat(history) for history in histories],
                weight_decay=group["weight_decay"] * group["decay_mult"] * group["branches"] * group["iter_size"],
                momentum=group["momentum"],
                lr=1,
                dampening=1 - rate,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
            if not group["owner"]:
                updates.append((weights, histories))
        for weights, histories in updates:
            torch._foreach_sub_(weights, histories)
        return loss

    def _history(self, weight: nn.Parameter) -> torch.Tensor:
        state = self.state[weight]
        state["history"] = _laid_out_as(weight, state["history"]) if state else torch.zeros_like(weight)
        return state["history"]

    def _clipping(self) -> torch.Tensor | None:
        """What to multiply the owners' gradients with, a scalar; None if they are not clipped."""
        if self.clip_gradients is None:
            return None
        owners = [parameter for group in self.param_groups if group["owner"] for parameter in group["params"]]
        gradients = [owner.grad for owner in owners if owner.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return (self.clip_gradients / norm).clamp(max=1)


class TorchSGD(torch.optim.SGD):
    """torch.optim.SGD on the groups of CaffeSGD: the learning rate is outside the history.

        v = momentum * v + g / iter_size + branches * weight_decay * decay_mult * w;  w = w - lr * lr_mult * v

    Args:
        groups: as `parameter_groups` makes them for a net without copies. lr_mult 0 freezes a group.
        iter_size: how many backward passes are summed in a gradient.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, momentum: float = 0.9, weight_decay: float = 1e-4, iter_size: int = 1
    ) -> None:
        decayed = [
            group | {"weight_decay": weight_decay * group["decay_mult"] * group["branches"], "iter_size": iter_size}
            for group in groups
        ]
        super().__init__(decayed, lr=0, momentum=momentum)
        _freeze(self.param_groups)

    def set_lr(self, lr: float) -> None:
        """Sets the rate of the next update, before the groups' lr_mult."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_mult"]

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Updates every parameter that has a gradient; the gradients are left divided by iter_size."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if group["iter_size"] > 1 and gradients:
                torch._foreach_div_(gradients, group["iter_size"])
        super().step()
        return loss


def _laid_out_as(weight: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the strides of a weight, because the fused kernels walk through both as they lie in memory."""
    return tensor if tensor.stride() == weight.stride() else torch.empty_like(weight).copy_(tensor)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor's values as they lie in memory; of what is not contiguous the fused kernels make copies."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _freeze(groups: Iterable[dict[str, Any]]) -> None:
    """No gradient is computed for groups of lr_mult 0."""
    for group in groups:
        if group["lr_mult"] == 0:
            for parameter in group["params"]:
                parameter.requires_grad_(False)


def parameter_groups(
    model: nn.Module,
    shared_decay: str = "per_branch",
    lr_mult: Mapping[str, float] | None = None,
    uniform_layers: bool = False,
) -> list[dict[str, Any]]:
    """Groups for a solver from `model.parameter_rules(lr_mult)`: every parameter in exactly one, equal rules together.

    A net whose branches have copies (`ShareNet.copy_per_branch`) gets a slot for each, otherwise one slot for all.

    shared_decay: "per_branch" decays a parameter once for each branch that shares it, as the authors' Caffe does;
    "once" is DeepLab v2's and today's Caffe's way. lr_mult: multipliers for layers that differ from the net's rule.
    uniform_layers: whether all of a layer's parameters, biases and batch norms' too, learn and decay as its weights.

    Raises:
        InputError: another value of shared_decay.
    """
    if shared_decay not in SHARED_DECAY:
        raise InputError(f"shared_decay '{shared_decay}' is not known; it is one of {', '.join(SHARED_DECAY)}.")
    rules = model.parameter_rules(lr_mult)
    if uniform_layers:
        rules = {
            name: rule._replace(lr_mult=rules[f"{name.rpartition('.')[0]}.weight"].lr_mult, decay_mult=1)
            for name, rule in rules.items()
        }
    groups: dict[tuple, list[nn.Parameter]] = {}
    for index, branch in enumerate((model, *model.copies)):
        for name, parameter in branch.named_parameters():
            rule = rules[name]
            decay_mult = rule.decay_mult if index == 0 or shared_decay == "per_branch" else 0
            branches = rule.branches if shared_decay == "per_branch" and not model.copies else 1
            groups.setdefault((index, rule.lr_mult, decay_mult, branches), []).append(parameter)
    return [
        {"params": parameters, "lr_mult": lr_mult, "decay_mult": decay_mult, "branches": branches, "owner": index == 0}
        for (index, lr_mult, decay_mult, branches), parameters in groups.items()
    ]
