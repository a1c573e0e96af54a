"""Runs on Caffe's random numbers: a run from a seed against the authors' Caffe end to end, and resumed runs.

The recorded run: attention over scales 1 and 0.5 with extra supervision, random_seed 1701, ten updates of two passes.
Draws are compared exactly. Losses, gradients and weights are float32 in both programs, with sums in another order.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import from_caffe
from a2s_repro.caffe.streams import CaffeStreams
from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.checkpoint.weights import load_weights, save_weights
from a2s_repro.data.caffe_rng import WordStream, dropout_mask, ziggurat
from a2s_repro.data.images import read_image
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths, build_model
from a2s_repro.models.layers import Dropout, take_masks_from
from a2s_repro.recipes import Recipe
from a2s_repro.replay.recording import read_recording
from a2s_repro.training import Run, Trainer, train
from caffe_weights import SUFFIX_OF_SCALE, read_caffemodel, stream_of
from tests.paths import GOLDEN
from tests.processes import run_tool

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 1701
LOSSES = ("loss", "loss_res1", "loss_res05")

RECIPE = Recipe(
    "tests/end_to_end",
    num_classes=5,
    scales=(1, 0.5),
    merge="attention",
    extra_supervision=True,
    width=1 / 16,
    crop=65,
    test_crop=65,
    batch_size=2,
    iter_size=2,
    max_iter=10,
    base_lr=0.0012,
    stepsize=4,
    average_loss=1,
    display=1,
)


@pytest.fixture(scope="module")
def recorded(golden):
    """The recorded arrays; `losses` is (iteration, pass, loss), in the order of LOSSES."""
    arrays = dict(np.load(golden / "e2e" / "run.npz"))
    tops = json.loads(str(arrays["info_json"]))["tops"]
    return arrays | {"losses": arrays["losses"][:, :, [tops.index(name) for name in LOSSES]].astype(float)}


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory) -> dict[str, Path]:
    """Options of a run: the recorded run's images and initial weights."""
    init = tmp_path_factory.mktemp("init") / "init.pth"
    weights = from_caffe(read_caffemodel(golden / "nets" / "init_single.caffemodel"), "init").weights
    save_weights(init, weights.state_dict, weights.meta)
    folder = golden / "data" / "files"
    return {"data_root": folder, "train_list": folder / "list.txt", "init": init}


@pytest.fixture
def trainer(files, request) -> Trainer:
    """Its passes run one by one, or as many together as the test's parameter says."""
    items, together = read_list(files["train_list"], files["data_root"]), getattr(request, "param", 1)
    return Trainer(RECIPE, items, torch.device("cpu"), "fp32", SEED, "ziggurat", together=together)


def caffe_name(parameter: str) -> str:
    """`fc8.bias` -> `fc8_voc12/1`."""
    layer, kind = parameter.split(".")
    return f"{RECIPE.classifier if layer == 'fc8' else layer}/{('weight', 'bias').index(kind)}"


def test_fillers(trainer, recorded):
    parameters = trainer.model.keyed_parameters().items()
    weights = {caffe_name(name): parameter.detach().numpy() for name, parameter in parameters}
    for layer in (RECIPE.classifier, "att_conv1", "att_fc"):
        for index in (0, 1):
            assert (weights[f"{layer}/{index}"] == recorded[f"filler|{layer}/{index}"]).all(), layer


def test_images_mirrors_and_crops(trainer, recorded):
    """The batches are all drawn before the forward passes, whose dropout layers draw from the same generator."""
    stream = trainer.caffe.data()
    for k in range(20):
        for slot, draw in enumerate(stream.batch(k)):
            height, width = (max(side, 65) for side in read_image(trainer.items[draw.index].image).shape[:2])
            ours = draw.index, draw.mirror % 2, draw.h_off % (height - 64), draw.w_off % (width - 64)
            theirs = (recorded[name][k // 2, k % 2, slot] for name in ("index", "mirror", "h_off", "w_off"))
            assert ours == tuple(theirs), k


@pytest.mark.parametrize(("trainer", "workers"), [(1, 0), (1, 2), (2, 0)], indirect=["trainer"])
def test_ten_updates(trainer, files, recorded, workers, record_property):
    """Without a flip, losses agree within 6e-7, gradients 1e-6 and weights 6e-7; the gates allow for one flip.

    Also with the two passes of an update together as one batch.
    """
    load_init(trainer.model, files["init"], RECIPE.classifier)
    parameters = {caffe_name(name): parameter for name, parameter in trainer.model.keyed_parameters().items()}
    batches = trainer.batches(workers)
    worst = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    for iteration in range(10):
        trainer.backward(batches)
        ours = np.array([trainer.recent[-1][name] for name in LOSSES])
        worst["loss"] = max(worst["loss"], np.abs(ours - recorded["losses"][iteration].mean(0)).max())
        if iteration == 0:
            for name, parameter in parameters.items():
                theirs = recorded.get(f"grad|{name}")  # recorded for tensors of up to 5000 values
                if theirs is not None:
                    deviation = np.abs(parameter.grad.numpy() - theirs).max() / np.abs(theirs).max()
                    worst["gradient"] = max(worst["gradient"], deviation)
        trainer.update()
    for name, parameter in parameters.items():
        theirs = recorded[f"final|{name}"]
        deviation = np.linalg.norm(parameter.detach().numpy() - theirs) / np.linalg.norm(theirs)
        worst["weight"] = max(worst["weight"], deviation)
    for what, value in worst.items():
        record_property(what, f"{value:.1e}")
    assert worst["loss"] < 1e-4 and worst["gradient"] < 5e-5 and worst["weight"] < 5e-5, worst
    assert trainer.caffe.words.word() == recorded["next_global_word"]


def test_the_tool_displays_caffes_losses(files, recorded, golden, tmp_path):
    """Compares the smoothed losses with Caffe's log (six digits) and with the record of all iterations."""
    settings = {
        **{name.replace("_", "-"): path for name, path in files.items()},
        **{"out": tmp_path / "run", "device": "cpu", "seed": SEED, "num-classes": 5, "classifier": RECIPE.classifier},
        **{"width": RECIPE.width, "crop": 65, "batch-size": 2, "iter-size": 2, "base-lr": 0.0012, "stepsize": 4},
        **{"max-iter": 10, "display": 1},
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    words = ("--recipe=voc12/attention2_esupv", *options, "--caffe-streams")
    done = run_tool("train_voc", *words, environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    means = recorded["losses"].mean(1)
    for iteration, line in enumerate(lines):
        assert [line["losses"][name] for name in LOSSES] == pytest.approx(means[: iteration + 1].mean(0), abs=1e-4)
    log = (golden / "e2e" / "caffe_train_display2_snapshot4.log").read_text()
    displayed = {int(i): float(loss) for i, loss in re.findall(r"Iteration (\d+), loss = (\S+)", log) if i != "10"}
    assert list(displayed) == [0, 2, 4, 6, 8]
    for iteration, loss in displayed.items():
        assert lines[iteration]["total"] == pytest.approx(loss, abs=1e-4)


def run_of(files, out: Path, **options) -> Run:
    return Run(out=out, seed=SEED, **{**files, "caffe_streams": "ziggurat", "workers": 0, **options})


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(files, tmp_path):
    recipe = RECIPE.changed(max_iter=5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, run_of(files, whole))
    train(recipe.changed(max_iter=2), run_of(files, parts, workers=1))
    torch.manual_seed(9)
    train(recipe, run_of(files, parts, resume="auto", workers=1))
    ours, theirs = (load_weights(folder / "final.pth").state_dict for folder in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_cannot_change_its_streams_when_resumed(files, tmp_path):
    train(RECIPE.changed(max_iter=1), run_of(files, tmp_path))
    with pytest.raises(InputError, match="run with caffe_streams ziggurat instead of None"):
        train(RECIPE, run_of(files, tmp_path, resume="auto", caffe_streams=None))
    with pytest.raises(InputError, match="run with caffe_streams ziggurat instead of box-muller"):
        train(RECIPE, run_of(files, tmp_path, resume="auto", caffe_streams="box-muller"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"caffe_streams": "normal"}, "filler 'normal' is not known; it is one of ziggurat, box-muller"),
        ({"seed": 2**32}, "seed 4294967296 is not possible with Caffe's streams: it must be from 0 to 4294967295"),
    ],
)
def test_invalid_streams_are_refused(files, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        train(RECIPE, Run(out=tmp_path / "run", **{**files, "caffe_streams": "ziggurat", **options}))
    assert not (tmp_path / "run").exists()


def test_the_order_of_draws_at_three_scales():
    """fc8's three copies, the first of which is kept, draw before the attention head; a pass draws before the next
    seed."""
    net = ShareNet(3, (1, 0.75, 0.5), widths=Widths().scaled(1 / 64)).train()
    streams, words = CaffeStreams(net, num_items=4, batch_size=2, crop=65, seed=5), WordStream(5)
    words.skip(3)
    fc8, *_ = (ziggurat(words, net.fc8.weight.numel(), 0.01) for _ in range(3))
    assert (net.fc8.weight.detach().numpy().ravel() == fc8).all()
    for layer, std in ((net.head.att_conv1, 0.005), (net.head.att_fc, 0.01)):
        assert (layer.weight.detach().numpy().ravel() == ziggurat(words, layer.weight.numel(), std)).all()

    masks = {}
    for dropout, below in (("drop6", "fc6"), ("drop7", "fc7"), ("drop_att_conv1", "att_conv1")):
        torch.nn.init.zeros_(net.layer(below).weight)
        torch.nn.init.ones_(net.layer(below).bias)
        layer = net.layer(dropout)
        layer.register_forward_hook(lambda _, x, y, name=dropout: masks.setdefault(name, []).append(y.detach() / 2))
    ahead = streams.data()
    seeds = [streams.transformer_seed]
    for _ in range(2):
        take_masks_from(net, streams.next_pass())
        net(torch.rand(2, 3, 65, 65))
        seeds.append(streams.transformer_seed)
        assert words.word() == streams.transformer_seed
        for stream in range(3):
            for name in ("drop6", "drop7"):
                mask = masks[name].pop(0).numpy()
                assert (mask == dropout_mask(words, mask.shape, 0.5)).all(), (name, stream)
        mask = masks["drop_att_conv1"].pop(0).numpy()
        assert (mask == dropout_mask(words, mask.shape, 0.5)).all()
    assert streams.words.state() == words.state()
    for k, seed in enumerate(seeds):
        assert [(d.mirror, d.h_off, d.w_off) for d in ahead.batch(k)] == [
            tuple(image) for image in WordStream(seed).words(6).reshape(2, 3).tolist()
        ]


TRAINING_NETS = [path.stem for path in sorted((GOLDEN / "nets").glob("*.prototxt")) if "_test" not in path.stem]


@pytest.mark.parametrize("name", TRAINING_NETS)
def test_layers_draw_in_the_order_of_the_authors_files(name):
    """Fillers and dropouts of the recorded training nets draw in the order of their prototxt. A skip-net with three
    scales has 50 fillers, including those of copies and of the frozen classifier, and 37 dropouts."""
    layers = (GOLDEN / "nets" / f"{name}.prototxt").read_text().split("\nlayer {")[1:]
    recording = read_recording(GOLDEN / "nets", name)
    net = build_model(recording.config | {"dropout": 0.5})
    streams, words = CaffeStreams(net, num_items=4, batch_size=2, crop=65, seed=5), WordStream(5)
    words.skip(3)
    seen = set()
    for layer in layers:
        if filler := re.search(r'weight_filler \{\s+type: "gaussian"\s+std: ([\d.]+)', layer):
            module = stream_of(layer_name(layer))[0].replace(recording.classifier, "fc8")
            weight = net.layer(module).weight
            drawn = ziggurat(words, weight.numel(), float(filler[1]))
            assert module in seen or (weight.detach().numpy().ravel() == drawn).all(), module
            seen.add(module)
    assert streams.words.state() == words.state()

    order = []
    scale_of_side = {9: 1, 7: 0.75, 5: 0.5, 3: 0.25}
    for module, layer in net.named_modules():
        module = module.removeprefix("head.")
        if isinstance(layer, Dropout):
            layer.register_forward_hook(
                lambda _, __, y, module=module: order.append(module + SUFFIX_OF_SCALE[scale_of_side[y.shape[-1]]])
            )
    net(torch.rand(2, 3, 65, 65))
    assert order == [layer_name(layer) for layer in layers if 'type: "Dropout"' in layer]


def layer_name(layer: str) -> str:
    """Name of a layer in a prototxt, not that of a parameter."""
    return re.search(r'^  name: "(\w+)"', layer, re.MULTILINE)[1]


def test_a_single_scale_draws_for_fc8_once():
    net = DeepLabLargeFOV(3, widths=Widths().scaled(1 / 64))
    streams, words = CaffeStreams(net, num_items=4, batch_size=1, crop=33, seed=5), WordStream(5)
    words.skip(3)
    assert (net.fc8.weight.detach().numpy().ravel() == ziggurat(words, net.fc8.weight.numel(), 0.01)).all()
    assert streams.words.state() == words.state()
    assert streams.words_per_pass == 1 + 2 * 16 * 5 * 5
