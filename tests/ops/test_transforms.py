"""torch.func's transforms and forward-mode derivatives: right, or refused in one sentence, never 0 in silence."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from a2s_repro import ops
from a2s_repro.models import DeepLabLargeFOV, Widths

torch.manual_seed(0)
X = torch.randn(2, 3, 5, 4, dtype=torch.float64)
OTHER, LOGITS = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 2, 6, 6, dtype=torch.float64)
WEIGHT = torch.randn(2, 6, 3, 3, dtype=torch.float64)

LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "interp": lambda x: ops.interp(x, (7, 9)),
    "interp_concat": lambda x: ops.interp_concat([x, OTHER], (6, 6)),
    "interp_shift_add": lambda x: ops.interp_shift_add(x.repeat(1, 9, 1, 1), x.new_zeros(2, 3, 6, 6)),
    "scale_average": lambda x: ops.scale_average([x, OTHER], (6, 6)),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "scale_merge": lambda x: ops.scale_merge([x, OTHER], LOGITS)[0],
    "scale_merge's weights": lambda x: ops.scale_merge([x, OTHER], x[:, :2])[1],
    "scale_max": lambda x: ops.scale_max([x, OTHER], (6, 6)),
    "scale_softmax": ops.scale_softmax,
}
FORWARD_MODE: dict[str, Callable] = {
    "jvp": lambda f: jvp(f, (X,), (X.cos(),))[1],
    "jacfwd": lambda f: jacfwd(lambda x: f(x)[0, 0, 0])(X),
    "hessian": lambda f: hessian(lambda a: (f(a * X) ** 2).sum())(X.new_tensor(1.5)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(lambda a: (f(a * X) ** 2).sum()))(X.new_tensor(1.5)),
    "jvp of vmap": lambda f: jvp(vmap(f), (torch.stack([X, -X]),), (torch.stack([X, X.cos()]),))[1],
}
REVERSE_MODE: dict[str, Callable] = {
    "grad": lambda f: grad(lambda x: (f(x) ** 2).sum())(X),
    "vjp": lambda f: vjp(f, X)[1](f(X))[0],
    "jacrev": lambda f: jacrev(lambda x: f(x)[0, 1])(X),
    "vmap": lambda f: vmap(f, in_dims=1)(torch.stack([X, 2 * X], dim=1)),
    "vmap of grad": lambda f: vmap(grad(lambda x: (f(x) ** 2).sum()))(torch.stack([X, 2 * X])),
    "grad of vmap": lambda f: grad(lambda x: (vmap(f)(torch.stack([x, 2 * x])) ** 2).sum())(X),
}


def as_the_reference(transform: Callable, f: Callable) -> None:
    with ops.use_backend("reference"):
        expected = transform(f)
    assert expected.abs().max() > 0
    torch.testing.assert_close(transform(f), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("transform", {**FORWARD_MODE, **REVERSE_MODE})
@pytest.mark.parametrize("operator", LINEAR)
def test_linear_operators_under_every_transform(operator: str, transform: str) -> None:
    as_the_reference({**FORWARD_MODE, **REVERSE_MODE}[transform], LINEAR[operator])


@pytest.mark.parametrize("transform", REVERSE_MODE)
@pytest.mark.parametrize("operator", OTHERS)
def test_other_operators_under_reverse_mode_and_vmap(operator: str, transform: str) -> None:
    as_the_reference(REVERSE_MODE[transform], OTHERS[operator])


@pytest.mark.parametrize("transform", FORWARD_MODE)
@pytest.mark.parametrize("operator", OTHERS)
def test_other_operators_refuse_forward_mode_and_name_the_way_out(operator: str, transform: str) -> None:
    with pytest.raises(
        RuntimeError, match=r"a2s::scale_\w+: forward-mode derivatives .*\.use_backend\('reference'\)\.$"
    ):
        FORWARD_MODE[transform](OTHERS[operator])
    with ops.use_backend("reference"):
        assert FORWARD_MODE[transform](OTHERS[operator]).isfinite().all()


@pytest.mark.parametrize("operator", LINEAR)
def test_dual_tensors_keep_their_tangents(operator: str) -> None:
    def tangent() -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(LINEAR[operator](forward_ad.make_dual(X, X.sin()))).tangent

    given = tangent()
    with ops.use_backend("reference"):
        torch.testing.assert_close(given, tangent(), rtol=1e-12, atol=1e-12)


def test_labels_have_no_derivative_and_are_mapped() -> None:
    assert jvp(lambda x: ops.segment(x, (7, 7)).double(), (X,), (X,))[1].abs().max() == 0
    assert torch.equal(vmap(lambda x: ops.segment(x, (7, 7)))(X[:, None]), ops.segment(X, (7, 7))[:, None])


@pytest.mark.parametrize("transform", {**FORWARD_MODE, **REVERSE_MODE})
def test_convolutions_are_right_or_refused_by_name(transform: str) -> None:
    """`interp_concat_conv2d` holds convolutions of this package, without a forward-mode derivative."""

    def convolved(x: Tensor) -> Tensor:
        return ops.interp_concat_conv2d([x, OTHER], WEIGHT, None, (6, 6))

    run = {**FORWARD_MODE, **REVERSE_MODE}[transform]
    with ops.use_backend("reference"):
        expected = run(convolved)
    try:
        given = run(convolved)
    except RuntimeError as error:
        assert re.match(r"conv2d\w*: .* not supported; run the forward pass under .*reference", str(error))
        assert transform in FORWARD_MODE or "jacrev" in transform
    else:
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_a_net_by_torch_func_is_autograds() -> None:
    net = DeepLabLargeFOV(3, widths=Widths().scaled(1 / 32)).eval().to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 33, 33).contiguous(memory_format=torch.channels_last)
    parameters = dict(net.named_parameters())
    given = grad(lambda p: functional_call(net, p, (image,)).scores.square().sum())(parameters)
    expected = torch.autograd.grad(net(image).scores.square().sum(), list(parameters.values()))
    for value, wanted in zip(given.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)
