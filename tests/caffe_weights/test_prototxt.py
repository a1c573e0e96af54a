"""prototxt's output is readable by protobuf's own parser, and files of any of Caffe's forks are read."""

import pytest
from google.protobuf import descriptor_pb2, text_format

from caffe_weights import CaffeFileError, Word, layers_of_phase, parse_prototxt, prototxt, read_prototxt
from tests.paths import GOLDEN


def test_the_fields_of_a_message_are_read_back():
    """The message is a protobuf descriptor, which has strings, numbers, enums, bools and nesting."""
    text = prototxt(
        {
            "name": 'a "net"\n',
            "field": [
                {"name": "weight", "number": 1, "type": Word("TYPE_FLOAT"), "options": {"packed": True}},
                {"name": "bias", "number": -2},
            ],
            "reserved_name": ["x", "y"],
        }
    )
    message = text_format.Parse(text, descriptor_pb2.DescriptorProto())
    assert message.name == 'a "net"\n' and list(message.reserved_name) == ["x", "y"]
    weight, bias = message.field
    assert (weight.name, weight.number, weight.type, weight.options.packed) == ("weight", 1, weight.TYPE_FLOAT, True)
    assert (bias.name, bias.number) == ("bias", -2)


def test_messages_are_indented_and_floats_are_exact():
    assert prototxt({"power_param": {"scale": 0.33333}}) == "power_param {\n  scale: 0.33333\n}\n"


NET = """
# name: "commented" layer { name: "no" }
name: "net"  # a comment behind a field
layer {
  name: "data" type: "ImageSegData" include { phase: TRAIN }
  transform_param { mirror: true, crop_size: 321; mean_value:104.008 mean_value: 116.669 mean_value :122 }
}
layer { name: 'data' include: < phase: TEST > }
# layer {
#   name: "fc8_concat"
#   eltwise_param { operation: MAX }
# }
layer { name: "fc" "8" scale: [1, -0.5, 1e-3f, 0x10] weight_filler { type: "gaussian" } exclude { phase: TEST } }
layers { name: "loss" type: SOFTMAX_LOSS loss_weight: .5 include { stage: "never" } }
"""


def test_comments_are_skipped_and_values_keep_their_types():
    net = parse_prototxt(NET)
    assert net["name"] == ["net"] and len(net["layer"]) == 3
    transform = net["layer"][0]["transform_param"][0]
    assert transform == {"mirror": [True], "crop_size": [321], "mean_value": [104.008, 116.669, 122]}
    assert net["layer"][2]["name"] == ["fc8"] and net["layer"][2]["scale"] == [1, -0.5, 1e-3, 16]
    kind = net["layers"][0]["type"][0]
    assert kind == "SOFTMAX_LOSS" and isinstance(kind, Word) and net["layers"][0]["loss_weight"] == [0.5]


def test_layers_are_those_that_caffe_builds_for_the_phase():
    net = parse_prototxt(NET)
    named = {phase: [layer["name"][0] for layer in layers_of_phase(net, phase)] for phase in ("TRAIN", "TEST")}
    assert named == {"TRAIN": ["data", "fc8"], "TEST": ["data"]}
    assert "transform_param" not in layers_of_phase(net, "TEST")[0]


def test_what_is_written_is_read_back():
    message = {"name": 'a "net"\n', "layer": [{"size": -3, "on": True, "kind": Word("MAX")}, {"ratio": 0.33333}]}
    assert parse_prototxt(prototxt(message)) == {
        "name": ['a "net"\n'],
        "layer": [{"size": [-3], "on": [True], "kind": ["MAX"]}, {"ratio": [0.33333]}],
    }


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("*.prototxt")), ids=lambda path: path.stem)
def test_the_authors_files_are_read(path):
    """Every layer has one name, and there is one for each line that begins a layer."""
    net = read_prototxt(path)
    assert len(net.get("layer", [])) == sum(line.startswith("layer {") for line in path.read_text().splitlines())
    assert all(len(layer["name"]) == 1 for layer in net.get("layer", []))


@pytest.mark.parametrize(
    "text",
    ["layer {", "layer { name: }", "name 'x'", "}", "a: {{", "layer { < }", "x: 'unended", "[a", "a:" + "{a:" * 200],
)
def test_a_damaged_text_is_one_sentence_with_its_file(tmp_path, text):
    (tmp_path / "train.prototxt").write_text(text)
    with pytest.raises(CaffeFileError, match=r"train.prototxt: .*(protobuf text|nested)"):
        read_prototxt(tmp_path / "train.prototxt")
