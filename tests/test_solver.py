"""Both update rules against manual arithmetic, the nets' parameter groups, and the learning-rate policies."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from a2s_repro.solver import CaffeSGD, LearningRate, TorchSGD, parameter_groups

THIN = Widths().scaled(1 / 64)


def updates(gradients: list[float], rates: list[float], **group) -> list[float]:
    """The values of a weight, initially 1, under these gradients and learning rates, with Caffe's rule."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    solver = CaffeSGD([{"params": [weight], **group}], momentum=0.9, weight_decay=group.get("weight_decay", 0))
    values = []
    for gradient, rate in zip(gradients, rates, strict=True):
        weight.grad = torch.full_like(weight, gradient)
        solver.set_lr(rate)
        solver.step()
        values.append(weight.item())
    return values


def test_the_rate_is_inside_the_history():
    """After the rate drops, the history still moves the weight at the old rate: 0.9 * 0.1 + 0.01 * 1."""
    assert updates([1, 1], [0.1, 0.01]) == pytest.approx([0.9, 0.9 - (0.9 * 0.1 + 0.01)])


def in_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy in another memory layout; "with gaps" is every second value of a longer row."""
    if layout == "with gaps":
        return torch.stack((tensor, torch.full_like(tensor, torch.nan)), -1)[..., 0]
    return tensor.clone(memory_format=getattr(torch, layout))


LAYOUTS = ("contiguous_format", "channels_last", "with gaps")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_others", LAYOUTS)
def test_weights_gradients_and_histories_of_any_layout_are_updated(of_weight, of_others, dtype):
    """Two updates, against the rule in float64, within the rounding of 16 steps of the dtype.

    The history of the first is stored in the gradients' layout, as a snapshot may have it.
    """
    torch.manual_seed(0)
    start, *gradients = torch.randn(3, 4, 5, 3, 3, dtype=dtype)
    weight = torch.nn.Parameter(in_layout(start, of_weight))
    stride, solver = weight.stride(), CaffeSGD([{"params": [weight]}], lr=0.1, weight_decay=0.05)
    w, h = start.double(), torch.zeros(4, 5, 3, 3, dtype=torch.float64)
    for gradient in gradients:
        weight.grad = in_layout(gradient, of_others)
        solver.step()
        solver.state[weight]["history"] = in_layout(solver.state[weight]["history"], of_others)
        h = 0.9 * h + 0.1 * (gradient.double() + 0.05 * w)
        w = w - h
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(solver.state[weight]["history"].double(), h, rtol=0, atol=tolerance)
    torch.testing.assert_close(weight.detach().double(), w, rtol=0, atol=tolerance)
    assert weight.stride() == stride


def test_an_expanded_gradient_is_that_of_every_element():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.ones(()).expand(3, 4)
    CaffeSGD([{"params": [weight]}], lr=0.25, weight_decay=0).step()
    assert torch.equal(weight, torch.full((3, 4), 0.75))


def test_without_momentum_the_history_is_the_last_step():
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    solver = CaffeSGD([{"params": [weight]}], momentum=0, weight_decay=0.5)
    for rate, w, h in ((0.1, 0.75, 0.25), (0.2, 0.275, 0.475)):
        weight.grad = torch.full_like(weight, 2)
        solver.set_lr(rate)
        solver.step()
        assert (weight.item(), solver.state[weight]["history"].item()) == pytest.approx((w, h))


def torch_updates(gradients: list[float], rates: list[float], **settings) -> list[float]:
    """The values of a weight, initially 1, under these gradients and learning rates, with PyTorch's rule."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    group = {"params": [weight], "lr_mult": 1, "decay_mult": 1, "shared_by": 1}
    keywords = {name: settings.pop(name) for name in ("weight_decay", "iter_size") if name in settings}
    solver = TorchSGD([group | settings], momentum=0.9, **{"weight_decay": 0} | keywords)
    values = []
    for gradient, rate in zip(gradients, rates, strict=True):
        weight.grad = torch.full_like(weight, gradient)
        solver.set_lr(rate)
        solver.step()
        values.append(weight.item())
    return values


def test_torchs_rate_is_outside_the_history():
    """After the rate drops, the history also moves the weight at the new rate: 0.01 * (0.9 * 1 + 1)."""
    assert torch_updates([1, 1], [0.1, 0.01]) == pytest.approx([0.9, 0.9 - 0.01 * 1.9])
    assert torch_updates([1, 1], [0.1, 0.01]) != pytest.approx(updates([1, 1], [0.1, 0.01]))


def test_torchs_multipliers_decay_and_iter_size():
    """w - lr * lr_mult * (g / iter_size + shared_by * wd * decay_mult * w) = 1 - 0.1 * 10 * (6 / 3 + 3 * 0.05 * 2)."""
    group = {"lr_mult": 10, "decay_mult": 2, "shared_by": 3}
    assert torch_updates([6], [0.1], iter_size=3, weight_decay=0.05, **group) == pytest.approx([1 - 2.3])


def test_torchs_rule_is_torch_optim_sgd():
    """Encoder and decoder are two groups with rates 1:10, over a poly schedule."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rate = LearningRate(0.01, "poly", power=0.9, max_iter=10)
    groups = [
        {"params": list(layer.parameters()), "lr_mult": mult, "decay_mult": 1, "shared_by": 1}
        for layer, mult in zip(ours, (1, 10), strict=True)
    ]
    solver = TorchSGD(groups, momentum=0.9, weight_decay=1e-2, iter_size=2)
    sgd = torch.optim.SGD([{"params": layer.parameters()} for layer in theirs], lr=0, momentum=0.9, weight_decay=1e-2)
    for iteration in range(10):
        solver.set_lr(rate(iteration))
        for group, mult in zip(sgd.param_groups, (1, 10), strict=True):
            group["lr"] = mult * rate(iteration)
        for module, passes, optimizer in ((ours, 2, solver), (theirs, 1, sgd)):
            optimizer.zero_grad()
            for _ in range(passes):
                module(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(("shared_by", "value"), [(1, 0.995), (3, 0.985)])
def test_a_shared_weight_decays_once_per_stream(shared_by, value):
    """The authors' Caffe at rate 0.1, decay 0.05, gradient 0 gives 0.985 with three sharing copies, 0.995 with one."""
    assert updates([0], [0.1], shared_by=shared_by, weight_decay=0.05) == pytest.approx([value])


def test_multipliers_and_iter_size():
    """h = lr * lr_mult * (g / iter_size + wd * decay_mult * w) = 0.1 * 10 * (6 / 3 + 0.05 * 2)."""
    group = {"lr_mult": 10, "decay_mult": 2, "iter_size": 3, "weight_decay": 0.05}
    assert updates([6], [0.1], **group) == pytest.approx([1 - 2.1])


@pytest.mark.parametrize("rule", [CaffeSGD, TorchSGD])
def test_lr_mult_zero_freezes(rule):
    weight = torch.nn.Parameter(torch.ones(2))
    other = torch.nn.Parameter(torch.ones(2))
    common = {"decay_mult": 1, "shared_by": 1}
    groups = [{"params": [weight], "lr_mult": 0, **common}, {"params": [other], "lr_mult": 1, **common}]
    solver = rule(groups, weight_decay=0.05)
    solver.set_lr(0.1)
    (weight + other).sum().backward()
    solver.step()
    assert weight.grad is None and not solver.state[weight]
    assert torch.equal(weight, torch.ones(2))
    assert not torch.equal(other, torch.ones(2))


@pytest.mark.parametrize("rule", [CaffeSGD, TorchSGD])
def test_the_state_round_trips(rule):
    def solver_of(weight):
        solver = rule([{"params": [weight], "lr_mult": 10, "decay_mult": 1, "shared_by": 1}])
        solver.set_lr(0.01)
        return solver

    weight = torch.nn.Parameter(torch.randn(5))
    solver = solver_of(weight)
    weight.grad = torch.randn(5)
    solver.step()
    copy = torch.nn.Parameter(weight.detach().clone())
    resumed = solver_of(copy)
    resumed.load_state_dict(deepcopy(solver.state_dict()))
    weight.grad = torch.randn(5)
    copy.grad = weight.grad.clone()
    solver.step()
    resumed.step()
    assert torch.equal(copy, weight)


@pytest.mark.parametrize(
    "net",
    [
        DeepLabLargeFOV(5, widths=THIN),
        ShareNet(5, widths=THIN),
        ShareNet(5, (1, 0.5), "average", pool5a=True, widths=THIN),
    ],
    ids=["largefov", "attention3", "average2"],
)
def test_every_parameter_is_in_exactly_one_group(net):
    grouped = [parameter for group in parameter_groups(net) for parameter in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(net.parameters()))


def test_groups_of_the_main_net():
    net = ShareNet(5, widths=THIN)
    names = {id(parameter): name for name, parameter in net.keyed_parameters().items()}
    groups = {
        (g["lr_mult"], g["decay_mult"], g["shared_by"]): {names[id(p)] for p in g["params"]}
        for g in parameter_groups(net)
    }
    assert groups.keys() == {(1, 1, 3), (2, 0, 3), (10, 1, 3), (20, 0, 3), (10, 1, 1), (20, 0, 1)}
    assert groups[10, 1, 3] == {"fc8.weight"}
    assert groups[10, 1, 1] == {"att_conv1.weight", "att_fc.weight"}
    assert groups[20, 0, 1] == {"att_conv1.bias", "att_fc.bias"}
    assert {"conv1_1.weight", "fc7.weight"} < groups[1, 1, 3]


def test_a_layer_can_have_another_multiplier():
    groups = parameter_groups(ShareNet(5, widths=THIN), lr_mult={"fc8": 0})
    (frozen,) = (group for group in groups if group["lr_mult"] == 0)
    assert [tuple(parameter.shape) for parameter in frozen["params"]] == [(5, 16, 1, 1), (5,)]
    assert frozen["decay_mult"] == 0


def test_uniform_layers_have_one_rule_for_all_their_parameters():
    net = ShareNet(5, widths=THIN)
    groups = parameter_groups(net, "once", uniform_layers=True)
    encoder, decoder = sorted(groups, key=lambda group: group["lr_mult"])
    assert [(group["lr_mult"], group["decay_mult"], group["shared_by"]) for group in (encoder, decoder)] == [
        (1, 1, 1),
        (10, 1, 1),
    ]
    fresh = [parameter for layer in net.new_layers for parameter in net.layer(layer).parameters()]
    assert {id(parameter) for parameter in decoder["params"]} == {id(parameter) for parameter in fresh}


def test_shared_decay_once_decays_a_shared_weight_once():
    assert {group["shared_by"] for group in parameter_groups(ShareNet(5, widths=THIN), "once")} == {1}
    with pytest.raises(InputError, match="shared_decay 'twice' is not known"):
        parameter_groups(ShareNet(5, widths=THIN), "twice")


@pytest.mark.parametrize("shared_decay", ["per_stream", "once"])
@pytest.mark.parametrize("merge", ["attention", "average"])
def test_a_slot_for_every_copy_trains_the_same_net_as_one_slot(merge, shared_decay):
    torch.manual_seed(0)
    net = ShareNet(5, merge=merge, widths=Widths().scaled(1 / 32), dropout=0).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1)
    copied = deepcopy(net)
    copied.copy_per_stream()
    solvers = [
        CaffeSGD(parameter_groups(model, shared_decay), lr=0.01, weight_decay=0.5, iter_size=2)
        for model in (net, copied)
    ]
    for _ in range(3):
        image = torch.randn(1, 3, 33, 33, dtype=torch.float64)
        for model, solver in zip((net, copied), solvers, strict=True):
            solver.zero_grad()
            model(image).scores.square().sum().backward()
            solver.step()
    one, per_copy = solvers
    for name, parameter in copied.keyed_parameters().items():
        copies = [parameter] + [copy.keyed_parameters()[name] for copy in copied.copies if "att" not in name]
        histories = [per_copy.state[copy]["history"] for copy in copies]
        ours = net.keyed_parameters()[name]
        assert torch.allclose(sum(histories), one.state[ours]["history"], rtol=1e-9, atol=1e-15), name
        assert torch.allclose(parameter, ours, rtol=1e-9, atol=1e-15), name
        assert len({copy.data_ptr() for copy in copies}) == 1
        assert len(copies) == 1 or not torch.equal(histories[0], histories[1])


def test_copies_follow_the_net_into_training_and_evaluation():
    net = ShareNet(5, widths=Widths().scaled(1 / 32))
    net.copy_per_stream()
    assert net.state_dict().keys() == ShareNet(5, widths=Widths().scaled(1 / 32)).state_dict().keys()
    assert not net.eval().copies[0].drop6.training
    assert net.train().copies[1].drop7.training


def test_a_skip_net_with_copies_predicts_what_it_does_without():
    """Evaluation mode, because there the streams score every pixel."""
    net = ShareNet(5, (1, 0.5), skip_net=True, widths=Widths().scaled(1 / 32))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randn(1, 3, 33, 33)
    expected = net.eval()(image)
    net.train().copy_per_stream()
    prediction = net.eval()(image)
    assert prediction.scale_scores[1].shape[2:] == (17, 17)
    assert torch.equal(prediction.scores, expected.scores)


def test_indistinguishable_slots_are_refused():
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="need separate groups"):
        CaffeSGD([{"params": [weight, torch.nn.Parameter(weight.data)]}])
    with pytest.raises(InputError, match="give every copy a slot"):
        CaffeSGD([{"params": [weight], "shared_by": 2}], clip_gradients=1.0)


def test_step_drops_at_multiples_of_stepsize():
    rate = LearningRate(1e-3, "step", gamma=0.1, stepsize=2000)
    assert [rate(i) for i in (0, 1999)] == [float(np.float32(1e-3))] * 2
    assert rate(2000) == pytest.approx(1e-4, rel=1e-7)
    assert rate(5999) == pytest.approx(1e-5, rel=1e-7)


def test_rates_are_float32_of_double_powers_of_float32_parameters():
    base_lr, gamma = float(np.float32(0.0012)), float(np.float32(0.1))
    assert LearningRate(0.0012, "step", gamma=0.1, stepsize=4)(9) == float(np.float32(base_lr * gamma**2))
    assert base_lr != 0.0012


def test_fixed_multistep_and_poly_policies():
    assert LearningRate(0.01, "fixed")(5000) == pytest.approx(0.01, rel=1e-7)
    multistep = LearningRate(0.01, "multistep", gamma=0.5, stepvalues=(3, 5))
    assert [multistep(i) for i in (2, 3, 4, 5)] == pytest.approx([0.01, 0.005, 0.005, 0.0025], rel=1e-6)
    poly = LearningRate(0.01, "poly", power=0.9, max_iter=100)
    assert [poly(i) for i in (0, 50, 99)] == pytest.approx([0.01, 0.01 * 0.5**0.9, 0.01 * 0.01**0.9], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"policy": "cosine"}, "lr_policy 'cosine' is not known; it is one of step, poly, fixed, multistep"),
        ({"base_lr": 0}, "base_lr is 0"),
        ({"stepsize": 0}, "stepsize is 0"),
        ({"policy": "multistep", "stepvalues": (5, 3)}, "the step values 5 3 must ascend"),
        ({"policy": "multistep"}, r"needs the iterations at which the rate drops \(--steps\)"),
    ],
)
def test_impossible_schedules_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        LearningRate(**settings)
