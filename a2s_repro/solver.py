"""Caffe's SGD and its learning-rate policies."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from a2s_repro.errors import InputError

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
        if self.policy == "fixed":
            factor = 1.0
        elif self.policy == "step":
            factor = gamma ** (iteration // self.stepsize)
        elif self.policy == "multistep":
            factor = gamma ** bisect_right(self.stepvalues, iteration)
        else:
            progress = np.float32(iteration) / np.float32(self.max_iter)
            factor = float(np.float32(1) - progress) ** power
        return float(np.float32(base_lr * factor))


class CaffeSGD(torch.optim.Optimizer):
    """SGD with momentum and L2 decay as Caffe's solver does it: the learning rate is inside the history.

        h = momentum * h + lr * lr_mult * (g / iter_size + branches * weight_decay * decay_mult * w);  w = w - h

    It differs from torch.optim.SGD after a change of rate: the history keeps the rates it was made with.
    `branches` is the number of sharing copies of a parameter. The authors' Caffe decays once per copy, each copy having
    its own history; as all is linear, that is one history with the copies' gradients summed and the decay `branches`
    times.

    Args:
        groups: as `parameter_groups` makes them: dicts with `params` and optionally `lr_mult`, `decay_mult`,
            `branches` (1 each). lr_mult 0 freezes a group: no gradient, no history, no decay.
        lr: rate of the next update; set it before each by `set_lr`.
        iter_size: how many backward passes are summed in a gradient.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        iter_size: int = 1,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise InputError(f"{name} is {value}; it must not be negative.")
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
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["lr_mult"] == 0:
                for parameter in group["params"]:
                    parameter.requires_grad_(False)

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
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights or group["lr_mult"] == 0:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["history"] = torch.zeros_like(weight)
            histories = [self.state[weight]["history"] for weight in weights]
            gradients = torch._foreach_mul([weight.grad for weight in weights], 1 / group["iter_size"])
            decay = group["weight_decay"] * group["decay_mult"] * group["branches"]
            if decay:
                torch._foreach_add_(gradients, weights, alpha=decay)
            torch._foreach_mul_(histories, group["momentum"])
            torch._foreach_add_(histories, gradients, alpha=group["lr"] * group["lr_mult"])
            torch._foreach_sub_(weights, histories)
        return loss


def parameter_groups(
    model: nn.Module, shared_decay: str = "per_branch", lr_mult: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups for CaffeSGD from `model.parameter_rules(lr_mult)`: every parameter in exactly one, equal rules together.

    shared_decay: "per_branch" decays a parameter once for each branch that shares it, as the authors' Caffe does;
    "once" is DeepLab v2's and today's Caffe's way. lr_mult: multipliers for layers that differ from the net's rule.

    Raises:
        InputError: another value of shared_decay.
    """
    if shared_decay not in SHARED_DECAY:
        raise InputError(f"shared_decay '{shared_decay}' is not known; it is one of {', '.join(SHARED_DECAY)}.")
    rules = model.parameter_rules(lr_mult)
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rule = rules[name]
        branches = rule.branches if shared_decay == "per_branch" else 1
        groups.setdefault((rule.lr_mult, rule.decay_mult, branches), []).append(parameter)
    return [
        {"params": parameters, "lr_mult": lr_mult, "decay_mult": decay_mult, "branches": branches}
        for (lr_mult, decay_mult, branches), parameters in groups.items()
    ]
