"""prototxt's output is readable by protobuf's own parser."""

from google.protobuf import descriptor_pb2, text_format

from caffe_weights import Word, prototxt


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
