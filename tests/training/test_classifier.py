"""The classifier of drawn shapes from which the demo starts: its file, and the training that made it."""

import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import convert_file
from a2s_repro.caffe.layers import TRUNK
from a2s_repro.checkpoint import save_weights
from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.data.demo import CLASSES, draw_single
from a2s_repro.errors import InputError
from a2s_repro.files import sha256_of
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from a2s_repro.training import classifier
from caffe_weights import write_caffemodel
from tests.paths import ROOT, TOOLS

FILE = TOOLS / "vgg16_shapes.caffemodel"
WIDTHS = Widths().scaled(0.125)


@pytest.fixture(scope="module")
def weights():
    return convert_file(FILE).weights


def test_the_file_is_the_documented_one():
    assert sha256_of(FILE) in (ROOT / "docs/demo.md").read_text()
    assert FILE.stat().st_size <= 2 * 2**20


def test_it_converts_as_the_authors_vgg_16(weights):
    assert weights.state_dict.keys() == {f"{la}.{kind}" for la in (*TRUNK, "fc8") for kind in ("weight", "bias")}
    assert weights.meta["classifier"] == "fc8_shapes"
    assert weights.meta["source"]["kind"] == "net"


def test_a_share_net_starts_from_its_trunk(weights, tmp_path):
    save_weights(tmp_path / "init.pth", weights.state_dict, weights.meta)
    loaded = load_init(ShareNet(len(CLASSES), (1, 0.5), widths=WIDTHS), tmp_path / "init.pth", classifier="fc8")
    assert loaded.loaded == list(TRUNK)
    assert loaded.fresh == ["fc8", "att_conv1", "att_fc"]


def test_it_classifies_pictures_that_it_has_not_seen(weights):
    """As documented, it is right on all but a few in a hundred; 90 of 96 leave room for chance."""
    net = DeepLabLargeFOV(len(CLASSES), widths=WIDTHS).eval()
    net.load_state_dict(weights.state_dict)
    with torch.no_grad():
        batches = [classifier._batch(12345, number) for number in range(3)]
        right = torch.cat([classifier._scores(net, images).argmax(1) == labels for images, labels in batches])
    assert right.sum() >= 90


def test_training_depends_only_on_the_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(classifier, "BATCH_SIZE", 4)
    monkeypatch.setattr(classifier, "TEST_BATCHES", 2)
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        net, accuracy = classifier.train_classifier(Widths().scaled(1 / 32), max_iter=2, seed=seed)
        assert 0 <= accuracy <= 1
        write_caffemodel(tmp_path / name, net)
    first, again, other = (sha256_of(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again != other


def test_scaling_leaves_the_scores():
    net = classifier._initial(Widths().scaled(1 / 32), seed=0)
    images, _ = classifier._batch(0, 0)
    with torch.no_grad():
        for layer in TRUNK:
            torch.nn.init.normal_(net.get_submodule(layer).bias)
        before = classifier._scores(net, images)
        classifier._scale(net, 1 / classifier._size_of_fc7(net, images))
        assert classifier._size_of_fc7(net, images) == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(classifier._scores(net, images), before, rtol=1e-4, atol=1e-5)


def test_pictures_show_every_class():
    drawn = [draw_single(np.random.default_rng((3, number)), 33, (8, 14)) for number in range(60)]
    assert {label for _, label in drawn} == set(range(len(CLASSES)))
    assert all(picture.shape == (33, 33, 3) and picture.dtype == np.uint8 for picture, _ in drawn)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="at least 1 iteration"):
        classifier.train_classifier(WIDTHS, max_iter=0, seed=0)
