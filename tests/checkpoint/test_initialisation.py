"""Initialisation from a weights file as in Caffe: layers are matched by name, and shapes must agree."""

import dataclasses

import pytest
import torch

from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabLargeFOV, DeepLabMSc, RefineHead, ShareNet, Widths
from a2s_repro.models.skip_branches import SKIP_LAYERS
from a2s_repro.solver import CaffeSGD, parameter_groups

THIN = Widths().scaled(1 / 64)


@pytest.fixture
def source() -> ShareNet:
    """A net with random weights in all layers."""
    net = ShareNet(5, (1, 0.5), widths=THIN)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net


def saved(path, net, classifier="fc8_voc12", without=()):
    state = {key: tensor for key, tensor in net.state_dict().items() if not key.startswith(tuple(without))}
    save_weights(path, state, {"pool5a": False, "classifier": classifier})
    return path


def test_all_layers_of_the_same_net_are_loaded(source, tmp_path):
    net = ShareNet(5, (1, 0.5), widths=THIN)
    outcome = load_init(net, saved(tmp_path / "net.pth", source), "fc8_voc12")
    assert len(outcome.loaded) == 18 and not outcome.fresh and not outcome.ignored
    for name, tensor in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_layers_that_an_init_file_lacks_keep_their_fillers(source, tmp_path):
    net = ShareNet(5, (1, 0.5), widths=THIN)
    before = net.fc8.weight.clone()
    outcome = load_init(net, saved(tmp_path / "init.pth", source, None, ["fc8", "att_"]), "fc8_voc12")
    assert outcome.fresh == ["fc8", "att_conv1", "att_fc"]
    assert str(outcome) == "15 layers loaded; fc8, att_conv1, att_fc from fillers"
    assert torch.equal(net.fc8.weight, before)
    assert torch.equal(net.fc7.weight, source.fc7.weight)


@pytest.mark.parametrize("theirs, called", [("fc8_coco", "fc8_coco"), ("fc8", "fc8 of another data set")])
def test_a_classifier_of_another_name_keeps_its_filler(source, tmp_path, theirs, called):
    net = DeepLabLargeFOV(11, widths=THIN)
    outcome = load_init(net, saved(tmp_path / "other.pth", source, theirs), "fc8_voc12")
    assert outcome.fresh == ["fc8"]
    assert outcome.ignored == [called, "att_conv1", "att_fc"]


@pytest.mark.parametrize("described", [True, False])
def test_a_head_starts_from_the_same_head_alone(source, tmp_path, described):
    """Layers of both papers' heads are named att_conv1 and att_fc, and their att_fc may have one shape."""
    path = tmp_path / "a2s.pth"
    meta = {"classifier": "fc8_voc12"} | ({"model": source.config()} if described else {})
    save_weights(path, source.state_dict(), meta)
    refining = ShareNet(5, (1, 0.5), head=RefineHead(), widths=dataclasses.replace(THIN, refine=THIN.att_conv1))
    before = refining.head.att_fc.weight.clone()
    assert before.shape == source.head.att_fc.weight.shape
    outcome = load_init(refining, path, "fc8_voc12")
    assert outcome.ignored == ["att_conv1 of another head", "att_fc of another head"]
    assert {"att_conv1", "att_fc"} <= set(outcome.fresh) and "fc8" in outcome.loaded
    assert torch.equal(refining.head.att_fc.weight, before)

    same = ShareNet(5, (1, 0.5), widths=THIN)
    assert not load_init(same, path, "fc8_voc12").fresh
    if described:
        more_scales = ShareNet(5, (1, 0.75, 0.5), widths=THIN)
        assert load_init(more_scales, path, "fc8_voc12").fresh == ["att_conv1", "att_fc"]


def test_a_refining_head_starts_from_files_without_its_later_fields(tmp_path):
    """Version 0.1 described it by dilations, stages and recalibration alone."""
    net = ShareNet(5, (1, 0.5), head=RefineHead(), widths=THIN)
    config = net.config()
    fields = ("dilations", "stages", "recalibration")
    described = config | {"head": {field: config["head"][field] for field in fields}}
    save_weights(tmp_path / "old.pth", net.state_dict(), {"classifier": "fc8_voc12", "model": described})
    for head, ignored in ((RefineHead(), []), (RefineHead(normalization="batch"), list(RefineHead().fillers()))):
        again = ShareNet(5, (1, 0.5), head=head, widths=THIN)
        outcome = load_init(again, tmp_path / "old.pth", "fc8_voc12")
        assert outcome.ignored == [f"{layer} of another head" for layer in ignored]
        assert torch.equal(again.head.att_fc.weight, net.head.att_fc.weight) == (not ignored)


def learning(net):
    """The net after a solver has frozen the layers with lr_mult 0."""
    CaffeSGD(parameter_groups(net), momentum=0.9, weight_decay=0, iter_size=1)
    return net


def test_from_largefov_to_msc_to_msc_with_attention(source, tmp_path):
    """Layers are matched by name at every step; new layers keep their fillers."""
    msc = learning(DeepLabMSc(5, widths=THIN))
    outcome = load_init(msc, saved(tmp_path / "largefov.pth", source, without=["att_"]), "fc8_voc12")
    assert outcome.fresh == list(SKIP_LAYERS) and len(outcome.loaded) == 16
    torch.nn.init.normal_(msc.data_ms.weight)
    attention = learning(ShareNet(5, skip_net=True, widths=THIN))
    outcome = load_init(attention, saved(tmp_path / "msc.pth", msc), "fc8_voc12")
    assert outcome.fresh == ["att_conv1", "att_fc"] and not outcome.ignored
    assert torch.equal(attention.data_ms.weight, msc.data_ms.weight)
    assert torch.equal(attention.fc8.weight, source.fc8.weight)


def test_a_frozen_classifier_is_required(source, tmp_path):
    """A skip-net's classifier is not trained, so neither its filler nor another data set's classifier is useful."""
    coco = saved(tmp_path / "coco.pth", source, "fc8_coco")
    sentence = r"coco\.pth lacks layers that are frozen in this net: fc8_voc12; start a skip-net from a LargeFOV"
    with pytest.raises(InputError, match=sentence):
        load_init(learning(DeepLabMSc(5, widths=THIN)), coco, "fc8_voc12")


@pytest.mark.parametrize(
    ("net", "without", "sentence"),
    [
        (DeepLabLargeFOV(5, widths=THIN), ["conv1_1", "fc6"], "lacks layers that have no filler: conv1_1, fc6"),
        (DeepLabLargeFOV(11, widths=THIN), [], "fc8 is 5x16x1x1 . 5, but the net's is 11x16x1x1 . 11: .*--num-classes"),
        (ShareNet(5, widths=THIN), [], "att_conv1 is .*: drop the layer when converting .*--skip att_conv1"),
        (DeepLabLargeFOV(5, widths=Widths().scaled(1 / 32)), [], "conv1_1 is .*: give the --width"),
    ],
    ids=["missing trunk", "another number of classes", "another number of scales", "another width"],
)
def test_mismatched_layers_are_refused_with_a_remedy(source, tmp_path, net, without, sentence):
    with pytest.raises(InputError, match=sentence):
        load_init(net, saved(tmp_path / "net.pth", source, without=without), "fc8_voc12")
