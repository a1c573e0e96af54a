"""The tables of a Caffe file's contents."""

from dataclasses import replace

import numpy as np

from caffe_weights import (
    CaffeNet,
    net_table,
    read_caffemodel,
    read_solverstate,
    same_blobs,
    solverstate_table,
    stream_of,
)


def row(table: str, start: str) -> list[str]:
    """The cells of the first row that starts with the words of `start`."""
    return next(line.split() for line in table.splitlines() if line.split()[: len(start.split())] == start.split())


def test_net_table_has_sum_and_norm_of_every_blob(golden):
    net = read_caffemodel(golden / "nets/iv_att2_esupv_B_iter_20.caffemodel")
    table = net_table(net)
    weight = next(layer for layer in net.layers if layer.name == "att_fc").blobs[0].astype(np.float64)
    *left, total, norm = row(table, "att_fc Convolution")
    assert left == ["att_fc", "Convolution", "2x32x1x1", "float32"]
    assert float(total) == float(f"{weight.sum():.7g}") and float(norm) == float(f"{np.linalg.norm(weight):.7g}")
    assert row(table, "relu1_1") == ["relu1_1", "ReLU"]
    assert "107 layers, 34 with blobs" in table.splitlines()[0]


def test_net_table_marks_equal_and_differing_copies(golden):
    net = read_caffemodel(golden / "nets/iv_att2_esupv_B_iter_20.caffemodel")
    assert row(net_table(net), "fc8_voc12_res05")[-3:] == ["copy", "of", "fc8_voc12"]
    changed = [
        replace(layer, blobs=[blob + 1 for blob in layer.blobs]) if layer.name == "fc6_res05" else layer
        for layer in net.layers
    ]
    assert row(net_table(CaffeNet("changed", changed)), "fc6_res05")[-3:] == ["differs", "from", "fc6"]


def test_solverstate_table(golden):
    table = solverstate_table(read_solverstate(golden / "sgd/sgd_iter_10.solverstate"))
    assert table.startswith("iter 10, current_step 1, learned_net 'sgd_iter_10.caffemodel'\n")
    assert row(table, "8") == ["8", "4x3x3x3", "float32", "0", "0"]
    assert len(table.splitlines()) == 2 + 10


def test_a_stream_is_identified_by_its_exact_suffix():
    assert stream_of("fc8_voc12_res05") == ("fc8_voc12", 0.5)
    assert stream_of("conv1_1_res075") == ("conv1_1", 0.75)
    assert stream_of("fc6_res025") == ("fc6", 0.25)
    assert stream_of("fc6") == ("fc6", 1) and stream_of("fc6_res5") == ("fc6_res5", 1)


def test_copies_are_compared_bit_for_bit(golden):
    layer = read_caffemodel(golden / "nets/init_single.caffemodel").layers[1]
    assert same_blobs(layer, layer)
    zero = replace(layer, blobs=[np.zeros(2, np.float32)])
    assert not same_blobs(zero, replace(zero, blobs=[np.array([0.0, -0.0], np.float32)]))
    assert not same_blobs(zero, replace(zero, blobs=[np.zeros(2)]))
