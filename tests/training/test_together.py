"""Passes of an update that run together, as one batch, against the same passes one by one."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.data.image_seg import Sample
from a2s_repro.data.lists import read_list
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from a2s_repro.models.layers import Dropout, SeededMasks, take_masks_from
from a2s_repro.models.losses import softmax_with_loss
from a2s_repro.reproduction.trial import SMOKE_CHANGES, draw_pretrained
from a2s_repro.training import Run, Trainer, train
from a2s_repro.training.together import even_share, passes_together, training_bytes
from tests.processes import RECIPE, make_files

pytestmark = pytest.mark.usefixtures("one_thread")

FOUR = RECIPE.changed(iter_size=4, batch_size=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"))


class Trained:
    """A net after some updates of four passes with dropout, and the losses of every update."""

    def __init__(self, files: dict[str, Path], dtype: torch.dtype, together: int, updates: int, **how) -> None:
        items = read_list(files["train_list"], files["data_root"])
        torch.manual_seed(2)
        trainer = Trainer(FOUR.changed(average_loss=1), items, CPU, "fp32", seed=2, together=together, **how)
        load_init(trainer.model, files["init"], "fc8")
        trainer.model.to(dtype)
        self.losses = []
        with closing(trainer.batches(workers=0)) as batches:
            converted = (Sample(batch.image.to(dtype), *batch[1:]) for batch in batches)
            for _ in range(updates):
                trainer.backward(converted)
                self.losses.append(list(trainer.recent[-1].values()))
                trainer.update()
        self.weights = trainer.model.state_dict()

    def deviations(self, other: "Trained") -> tuple[float, float, float]:
        """The largest relative deviation of a loss, and in Euclidean norm of a layer's weights, and of its biases."""
        ours, theirs = (torch.tensor(each.losses, dtype=torch.float64) for each in (self, other))
        of = {"weight": [], "bias": []}
        for name, value in other.weights.items():
            difference = (self.weights[name].double() - value.double()).norm() / value.double().norm()
            of[name.rpartition(".")[2]].append(float(difference))
        return float((ours / theirs - 1).abs().max()), max(of["weight"]), max(of["bias"])


@pytest.mark.parametrize(
    ("together", "caffe_streams"),
    [pytest.param(3, None, marks=pytest.mark.long), pytest.param(4, None, marks=pytest.mark.long), (2, "ziggurat")],
)
def test_passes_together_equal_passes_one_by_one_in_float64(files, together, caffe_streams):
    """Within 1e-9 after 20 updates: groups of three and one, of all four, of two. Only the order of sums differs."""
    ours, theirs = (Trained(files, torch.float64, count, 20, caffe_streams=caffe_streams) for count in (together, 1))
    assert max(ours.deviations(theirs)) < 1e-9, ours.deviations(theirs)


def test_passes_together_equal_passes_one_by_one_in_float32(files):
    """Within 1e-6 after 20 updates, as no ReLU or max-pool unit of these nets and pictures flips; biases within 2e-5.

    With seeds 0, 1, 5 and 9 one does: two values of a max-pooling window, or one near 0, change their order. The
    weights then deviate by 1e-4 after that update, and by up to 0.14 after 20. Biases begin at 0 and oneDNN sums their
    gradients over the batch in float32: some layer's deviate by 2e-6 with AVX-512, and by up to 1.3e-5 with seeds 3, 4,
    6 and 8.
    """
    ours, theirs = (Trained(files, torch.float32, together, 20) for together in (4, 1))
    losses, weights, biases = ours.deviations(theirs)
    assert losses < 1e-6 and weights < 1e-6 and biases < 2e-5, (losses, weights, biases)


def test_each_pass_has_the_mean_of_its_own_valid_pixels():
    torch.manual_seed(0)
    scores, labels = torch.randn(6, 4, 5, 5), torch.randint(4, (6, 5, 5))
    labels[0, :4], labels[4:] = 255, 255  # few valid pixels in the first pass, none in the last
    alone = [softmax_with_loss(*pair) for pair in zip(scores.chunk(3), labels.chunk(3), strict=True)]
    torch.testing.assert_close(softmax_with_loss(scores, labels, passes=3), torch.stack(alone), rtol=1e-6, atol=0)
    assert alone[2] == 0


def test_each_pass_draws_the_masks_that_it_draws_alone():
    layer, x = Dropout(0.5), torch.ones(6, 4, 9, 9)
    alone = []
    for seed, part in zip((5, 6, 7), x.chunk(3), strict=True):
        take_masks_from(layer, SeededMasks(seed, CPU))
        alone += [layer(part), layer(part)]
    take_masks_from(layer, *(SeededMasks(seed, CPU) for seed in (5, 6, 7)))
    assert torch.equal(layer(x), torch.cat(alone[::2])) and torch.equal(layer(x), torch.cat(alone[1::2]))
    assert not torch.equal(alone[0], alone[2])


def test_a_snapshot_is_resumed_with_another_number_of_passes_together(files, tmp_path):
    recipe = FOUR.changed(max_iter=2)
    train(recipe.changed(max_iter=1), Run(out=tmp_path, workers=0, together=3, **files))
    assert train(recipe, Run(out=tmp_path, workers=0, together=2, resume="auto", **files)).iterations == 2


def test_nets_with_batch_normalisation_run_pass_by_pass(files, tmp_path, capsys):
    draw_pretrained(tmp_path)
    recipe = RECIPE.changed(
        **{"backbone": "resnet34", "scales": (1,), "merge": None, "extra_supervision": False, "solver": "torch"},
        **{"width": SMOKE_CHANGES["width"], "iter_size": 2, "max_iter": 1},
    )
    train(recipe, Run(out=tmp_path / "run", workers=0, together=2, **files | {"init": tmp_path / "resnet34.pth"}))
    assert "the passes run one by one, because each is normalised by its own statistics" in capsys.readouterr().out


def test_on_a_cpu_passes_run_one_by_one_unless_asked_otherwise():
    net = DeepLabLargeFOV(3, widths=Widths().scaled(1 / 64)).train()
    assert passes_together(None, net, batch_size=3, crop=65, passes=10, device=CPU) == 1
    assert [passes_together(wanted, net, 3, 65, 10, CPU) for wanted in (1, 4, 99)] == [1, 4, 10]


@pytest.mark.parametrize(("most", "share"), [(0, 1), (1, 1), (4, 4), (6, 5), (9, 5), (10, 10), (99, 10)])
def test_batches_share_ten_passes_evenly(most, share):
    assert even_share(10, most) == share


@pytest.mark.parametrize("scales", [(1, 0.5), (1, 0.75, 0.5)])
def test_the_memory_of_a_pass_is_estimated(scales):
    """The estimate covers the tensors that autograd keeps of a crop, and is at most three times as large."""
    net = ShareNet(3, scales, widths=Widths().scaled(1 / 8)).to(memory_format=torch.channels_last).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = net(torch.randn(1, 3, 129, 129).to(memory_format=torch.channels_last))
    held = sum(size for place, size in kept.items() if place not in weights)
    assert held < training_bytes(net, 129) < 3 * held
    assert prediction.scores.requires_grad
