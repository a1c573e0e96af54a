"""Six thin nets against what the authors' Caffe computed for them: single scale, average, max and attention merging.

Each record holds every blob of the first forward pass, the gradients of the first iteration, and two runs of 20 SGD
iterations (A and B, at two rates with two drops each). A run in float32 may flip a ReLU or a max-pool unit that is
near a tie on another convolution kernel, so the runs are held tightly in float64, where none flips; Interp's
coordinates are float32 in both.
"""

import contextlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from a2s_repro import ops
from a2s_repro.losses import loss_inputs, seg_accuracy, shrink_labels, training_loss
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from a2s_repro.models.share_net import rescaled
from a2s_repro.ops import _native
from a2s_repro.solver import CaffeSGD, LearningRate, parameter_groups
from caffe_weights import read_caffemodel, read_solverstate

RECORDS = Path(__file__).parent / "golden" / "nets"
NAMES = ("i_single", "ii_avg2", "iii_max3_esupv", "iv_att2_esupv", "v_att3_esupv", "vii_att4_esupv")
SUFFIX = {1: "", 0.75: "_res075", 0.5: "_res05", 0.25: "_res025"}
MERGE = {"avg": "average", "max": "max", "att": "attention"}

BLOBS = 1e-5
"""Largest deviation of a blob, relative to its largest value: float32 sums in another order (2e-6 was seen)."""
GRADIENTS = 5e-5
"""The same for the gradients of the first iteration."""


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(RECORDS / f"{name}.npz"))


class Record:
    """One net's record and the parts to repeat it: the net with its initial weights, and the batches in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays = arrays(f"net_{name}")
        self.info = json.loads(str(self.arrays["info_json"]))
        self.config = self.info["cfg"]
        self.order = self.arrays["order"]
        self.classifier = f"fc8_{self.config['exp']}"
        self.scales = tuple(self.config.get("scales", (1,)))
        self.extra_supervision = bool(self.config.get("esupv"))

    def blobs(self) -> dict[str, np.ndarray]:
        shared = arrays("blobs_shared")
        own = {key[5:]: value for key, value in self.arrays.items() if key.startswith("blob|")}
        return {name: shared[f"blob|{name}"] for name in self.info["shared_blobs"]} | own

    def net(self, dtype: torch.dtype) -> DeepLabLargeFOV:
        widths = Widths(**self.config["w"], att_conv1=self.config["att"])
        if len(self.scales) == 1:
            net = DeepLabLargeFOV(self.config["classes"], dropout=0, widths=widths)
        else:
            merge = MERGE[self.config["merge"]]
            net = ShareNet(self.config["classes"], self.scales, merge, dropout=0, widths=widths)
        layers = read_caffemodel(RECORDS / "init_single.caffemodel").layers
        values = {f"{layer.name}/{i}": blob for layer in layers for i, blob in enumerate(layer.blobs)}
        values |= {key[5:]: value for key, value in self.arrays.items() if key.startswith("head|")}
        state = {self.parameter(key): torch.from_numpy(value.copy()) for key, value in values.items()}
        net.load_state_dict({name: state[name] for name in net.state_dict()})
        return net.to(dtype)

    def parameter(self, key: str) -> str:
        """`conv1_1/0` -> `conv1_1.weight`; a sharing copy has the name of its owner."""
        layer, index = key.split("/")
        for suffix in SUFFIX.values():
            layer = layer.removesuffix(suffix)
        return f"{'fc8' if layer.startswith('fc8_') else layer}.{('weight', 'bias')[int(index)]}"

    def batch(self, indices: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        data = arrays("data")
        pixels = data["images_bgr"][indices].astype(np.float32) - data["mean_bgr"]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(dtype), torch.from_numpy(data["labels"][indices])

    def summed(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays under `prefix|layer/i` by parameter name, summed over sharing copies."""
        total: dict[str, np.ndarray] = {}
        for key, value in self.arrays.items():
            if key.startswith(f"{prefix}|"):
                name = self.parameter(key.removeprefix(f"{prefix}|"))
                total[name] = total.get(name, 0) + value
        return total

    def final_weights(self, run: str) -> dict[str, np.ndarray]:
        """By parameter name; of run A only the first 400 values of a large one."""
        if run == "B" and self.name == "iv_att2_esupv":
            layers = read_caffemodel(RECORDS / "iv_att2_esupv_B_iter_20.caffemodel").layers
            return {self.parameter(f"{la.name}/{i}"): blob for la in layers for i, blob in enumerate(la.blobs)}
        return self.summed(f"final_{run}") | self.summed(f"final_{run}_first400")

    def history_B(self) -> dict[str, np.ndarray]:
        """The momentum after run B, summed over copies; the first 400 values except where a .solverstate was kept."""
        if self.name != "iv_att2_esupv":
            return self.summed("hist_B_first400")
        state = read_solverstate(RECORDS / "iv_att2_esupv_B_iter_20.solverstate")
        assert state.iter == 20
        total: dict[str, np.ndarray] = {}
        for key, blob in zip(self.info["params"], state.history, strict=True):
            total[self.parameter(key)] = total.get(self.parameter(key), 0) + blob
        return total


record = cache(Record)


@pytest.fixture(params=["reference", "native"])
def backend(request):
    """Runs the test on the operators' references and on the native ones."""
    if request.param == "native" and "cpu" not in _native.loaded_devices():
        pytest.skip("the native operators are not built")
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def one_thread():
    """How a convolution's sums are split, and so rounded, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def deviation(ours: Tensor | float, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest recorded value."""
    ours, theirs = np.asarray(torch.as_tensor(ours).detach(), np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours.reshape(theirs.shape) - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def relative_l2(ours: Tensor, theirs: np.ndarray) -> float:
    """Distance relative to the recorded length; where only the first values were recorded, over those."""
    ours = ours.detach().double().flatten()[: theirs.size].numpy()
    return float(np.linalg.norm(ours - theirs.ravel()) / np.linalg.norm(theirs))


def worst(deviations: dict[str, float], record_property, what: str) -> tuple[float, str]:
    """The largest deviation and whose it is, kept with the test's report."""
    value, name = max((value, name) for name, value in deviations.items())
    record_property(what, f"{value:.1e} ({name})")
    return value, name


@contextlib.contextmanager
def recorded_outputs(net: torch.nn.Module):
    """Collects what every layer gives, by its name: a list, one entry per branch. ReLUs act in place, so a layer's
    entry shows the value after them, as a Caffe blob does."""
    outputs: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.setdefault(name, []).append(output))
        for name, layer in net.named_modules()
        if name
    ]
    yield outputs
    for hook in hooks:
        hook.remove()


def blobs_of(rec: Record, dtype: torch.dtype) -> dict[str, Tensor | float]:
    """Every blob of the authors' training net, from a forward pass of ours."""
    net = rec.net(dtype)
    image, labels = rec.batch(rec.order[0, 0], dtype)
    with recorded_outputs(net) as outputs:
        prediction = net(image)
    grid = prediction.scores.shape[2:]

    blobs: dict[str, Tensor | float] = {"data": image, "label": labels}
    blobs["label_shrink"] = blobs["label_shrink8"] = shrink_labels(labels, 8)
    for factor, scale in ((16, 0.5), (32, 0.25)):
        if scale in rec.scales:
            blobs[f"label_shrink{factor}"] = shrink_labels(labels, factor)
    for name, values in outputs.items():
        blob = rec.classifier if name == "fc8" else name
        blobs |= {blob + SUFFIX[scale]: value for scale, value in zip(rec.scales, values, strict=False)}
    for scale in rec.scales[1:]:
        blobs[f"shrink_data{SUFFIX[scale].removeprefix('_res')}"] = rescaled(image, scale)
        for blob in ("fc7", rec.classifier):
            blobs[f"{blob}{SUFFIX[scale]}_interp"] = ops.interp(blobs[blob + SUFFIX[scale]], grid)

    aligned = [blobs[rec.classifier]] + [blobs[f"{rec.classifier}{SUFFIX[s]}_interp"] for s in rec.scales[1:]]
    blobs["fc8_fusion"] = prediction.scores
    if rec.config.get("merge") == "avg":
        blobs["fc_fusion"] = sum(aligned)
    if prediction.weights is not None:
        blobs["fc7_concat"] = ops.interp_concat([blobs["fc7" + SUFFIX[s]] for s in rec.scales], grid)
        blobs["attention"] = prediction.weights
        for index, (scale, scores) in enumerate(zip(rec.scales, aligned, strict=True)):
            weight = prediction.weights[:, index : index + 1]
            blobs[f"attention{index + 1}"] = weight
            blobs[f"fc8{SUFFIX[scale]}_product"] = weight * scores

    losses = training_loss(prediction, labels, rec.extra_supervision)
    watched = loss_inputs(prediction, labels, rec.extra_supervision)
    for index, (name, loss) in enumerate(losses.items()):
        blobs[f"automatic{index + 1}"] = loss
        blobs[name.replace("loss", "accuracy")] = torch.tensor(seg_accuracy(*watched[name]))
    return blobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_blob_of_the_first_pass(name, dtype, backend, record_property):
    rec = record(name)
    theirs = rec.blobs()
    del theirs["automatic0"]  # the data layer's third top: the images' sizes, which nothing reads
    ours = blobs_of(rec, dtype)
    assert not theirs.keys() - ours.keys()
    deviations = {blob: deviation(ours[blob], values) for blob, values in theirs.items()}
    value, blob = worst(deviations, record_property, "blobs")
    assert value < BLOBS, blob


def test_the_images_and_labels_at_each_scale_are_exact():
    rec = record("vii_att4_esupv")
    image, labels = rec.batch(rec.order[0, 0], torch.float32)
    theirs = rec.blobs()
    for scale, blob in ((0.5, "shrink_data05"), (0.25, "shrink_data025")):
        assert np.array_equal(rescaled(image, scale), theirs[blob])
    assert torch.equal(rescaled(rescaled(image, 0.5), 0.5), rescaled(image, 0.25))
    for factor in (8, 16, 32):
        assert np.array_equal(shrink_labels(labels, factor), theirs[f"label_shrink{factor}"][:, 0])


# In float32, iii is left out: in its second pass a max-pool window (pool5[1, 26, 0, 7]) has two values 1.2e-6 apart,
# and AVX-512 kernels take the other one.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for dtype in (torch.float32, torch.float64)
        for name in NAMES
        if (name, dtype) != ("iii_max3_esupv", torch.float32)
    ],
    ids=str,
)
def test_the_gradients_of_the_first_iteration(name, dtype, backend, record_property):
    rec = record(name)
    net = rec.net(dtype)
    for indices in rec.order[0]:
        image, labels = rec.batch(indices, dtype)
        sum(training_loss(net(image), labels, rec.extra_supervision).values()).backward()
    theirs = rec.summed("grad") or rec.summed("grad_copy")
    ours = {parameter: p.grad for parameter, p in net.named_parameters()}
    assert ours.keys() == theirs.keys()
    deviations = {parameter: deviation(ours[parameter], theirs[parameter]) for parameter in theirs}
    value, parameter = worst(deviations, record_property, "gradients")
    assert value < GRADIENTS, parameter


def train_like_caffe(rec: Record, run: str, dtype: torch.dtype) -> tuple[np.ndarray, torch.nn.Module, CaffeSGD]:
    """20 iterations of 2 passes; returns the losses (20, 2, L), the net and the solver."""
    net = rec.net(dtype)
    rate = LearningRate(rec.info["base_lr"][run], "step", gamma=0.1, stepsize=8)
    solver = CaffeSGD(parameter_groups(net), momentum=0.9, weight_decay=5e-4, iter_size=2)
    losses = []
    for iteration, passes in enumerate(rec.order):
        solver.zero_grad()
        for indices in passes:
            image, labels = rec.batch(indices, dtype)
            values = training_loss(net(image), labels, rec.extra_supervision)
            sum(values.values()).backward()
            losses.append([value.item() for value in values.values()])
        solver.set_lr(rate(iteration))
        solver.step()
    return np.array(losses).reshape(20, 2, -1), net, solver


def check_run(rec: Record, run: str, dtype: torch.dtype, gates: dict[str, float], record_property) -> None:
    """Holds the losses (absolute), final weights and, after run B, the history (relative L2 per tensor) to `gates`."""
    losses, net, solver = train_like_caffe(rec, run, dtype)
    columns = [index for index, top in enumerate(rec.info["tops"]) if top.startswith("loss")]
    names = [rec.info["tops"][index] for index in columns]
    apart = np.abs(losses - rec.arrays[f"losses_{run}"][:, :, columns]).max(axis=(0, 1))
    found = {"losses": dict(zip(names, apart, strict=True))}
    weights = dict(net.named_parameters())
    found["weights"] = {name: relative_l2(weights[name], theirs) for name, theirs in rec.final_weights(run).items()}
    assert found["weights"].keys() == weights.keys()
    if run == "B":
        history = rec.history_B()
        assert history.keys() == weights.keys()
        found["history"] = {
            name: relative_l2(solver.state[weights[name]]["history"], theirs) for name, theirs in history.items()
        }
    for what, deviations in found.items():
        value, name = worst(deviations, record_property, what)
        assert what not in gates or value < gates[what], f"{what}: {name} is off by {value:.1e}"


@pytest.mark.parametrize("run", ["A", "B"])
@pytest.mark.parametrize("name", NAMES)
def test_twenty_iterations_in_float64(name, run, backend, record_property):
    gates = {"losses": 1e-5, "weights": 1e-5, "history": 1e-3}
    check_run(record(name), run, torch.float64, gates, record_property)


@pytest.mark.parametrize("run", ["A", "B"])
@pytest.mark.parametrize("name", NAMES)
def test_twenty_iterations_in_float32(name, run, record_property):
    """Held tightly where AVX2 and AVX-512 kernels flip no unit; a flip moves a loss by up to 5e-3.

    Run B of ii is loose because of conv5_1[1, 11, 2, 5] in iteration 3: -5.4e-5 among values up to 350 in float64,
    it comes out as +3.9e-5 of one thread's AVX-512 kernels, and the loss is then off by 8e-5.
    """
    tight = {"losses": 5e-5, "weights": 5e-5, "history": 5e-3}
    steady = (name, run) == ("ii_avg2", "A") or name in ("iv_att2_esupv", "v_att3_esupv")
    check_run(record(name), run, torch.float32, tight if steady else {"losses": 5e-3}, record_property)


@pytest.mark.parametrize("name", ["iv_att2_esupv", "v_att3_esupv"])
def test_the_test_phase(name, backend, record_property):
    """An image lower and wider than the crop: zeros below, centre crop across, scores enlarged by 8, argmax."""
    rec = record(name)
    net = rec.net(torch.float32).eval()
    pixels = rec.arrays["test|image_bgr"].astype(np.float32) - arrays("data")["mean_bgr"]
    side = rec.arrays["test|fc8_interp_argmax"].shape[-1]
    left = (pixels.shape[1] - side) // 2
    image = torch.zeros(1, 3, side, side)
    image[0, :, : len(pixels)] = torch.from_numpy(pixels[:, left : left + side]).permute(2, 0, 1)
    with torch.no_grad(), recorded_outputs(net) as outputs:
        prediction = net(image)
    ours = {
        "att_fc": outputs["att_fc"][0],
        "attention": prediction.weights,
        "fc8_fusion": prediction.scores,
        "fc8_interp_row0": ops.interp(prediction.scores, (side, side))[0, :, 5],
    }
    deviations = {blob: deviation(value, rec.arrays[f"test|{blob}"]) for blob, value in ours.items()}
    value, blob = worst(deviations, record_property, "test phase")
    assert value < BLOBS, blob
    assert np.array_equal(ops.segment(prediction.scores, (side, side)), rec.arrays["test|fc8_interp_argmax"][0])
