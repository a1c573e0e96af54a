"""The protobuf messages of Caffe's binary files, reduced to names, types and blobs.

The descriptors are built at run time in their own pool: no generated module has to match the installed protobuf
release, and there is no conflict with a `caffe_pb2` loaded in the same process. The forks of Caffe agree on the fields
declared here; nearly all other fields (above all layer parameters) differ between forks and are not declared.

A packed `repeated float` has the wire format of `bytes`. `BlobProto` declares its data as bytes, so that numpy can view
them without parsing; `UnpackedBlobProto` reads the rare files whose values are not packed.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "caffe_weights"
_Field = descriptor_pb2.FieldDescriptorProto

# Message -> fields as (name, number, type, repeated). A type that is not a scalar is another message.
_MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "BlobShape": [("dim", 1, "int64", True)],
    "BlobProto": [
        ("num", 1, "int32", False),
        ("channels", 2, "int32", False),
        ("height", 3, "int32", False),
        ("width", 4, "int32", False),
        ("data", 5, "bytes", True),
        ("diff", 6, "bytes", True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, "bytes", True),
        ("double_diff", 9, "bytes", True),
        ("raw_data_type", 10, "int32", False),  # of NVIDIA's fork, as are those below; an enum
        ("raw_diff_type", 11, "int32", False),
        ("raw_data", 12, "bytes", True),
        ("raw_diff", 13, "bytes", True),
    ],
    "UnpackedBlobProto": [
        ("data", 5, "float", True),
        ("diff", 6, "float", True),
        ("double_data", 8, "double", True),
        ("double_diff", 9, "double", True),
    ],
    "LayerParameter": [
        ("name", 1, "bytes", False),
        ("type", 2, "bytes", False),
        ("blobs", 7, "BlobProto", True),
    ],
    "V1LayerParameter": [
        ("layer", 1, "bytes", False),  # a V0LayerParameter: only its presence matters
        ("name", 4, "bytes", False),
        ("type", 5, "int32", False),  # an enum; int32 keeps the numbers that only a fork defines
        ("blobs", 6, "BlobProto", True),
    ],
    "NetParameter": [
        ("name", 1, "bytes", False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    ],
    "SolverState": [
        ("iter", 1, "int32", False),
        ("learned_net", 2, "bytes", False),
        ("history", 3, "BlobProto", True),
        ("current_step", 4, "int32", False),
    ],
}


def _message_classes() -> dict[str, type]:
    file = descriptor_pb2.FileDescriptorProto(name="caffe_weights.proto", package=_PACKAGE, syntax="proto2")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind, repeated in fields:
            field = message.field.add(name=name, number=number)
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(_Field, f"TYPE_{kind.upper()}")
            if message_name == "BlobShape":
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_classes = _message_classes()
BlobProto = _classes["BlobProto"]
UnpackedBlobProto = _classes["UnpackedBlobProto"]
NetParameter = _classes["NetParameter"]
SolverStateParameter = _classes["SolverState"]

# V1LayerParameter.LayerType by number, with the new format's names. DeepLab's and the authors' Caffe assign 39 and the
# numbers above to their own layers, so a V1 type is only informative.
# fmt: off
V1_TYPES = (
    "", "Accuracy", "BNLL", "Concat", "Convolution", "Data", "Dropout", "EuclideanLoss", "Flatten", "HDF5Data",
    "HDF5Output", "Im2col", "ImageData", "InfogainLoss", "InnerProduct", "LRN", "MultinomialLogisticLoss",
    "Pooling", "ReLU", "Sigmoid", "Softmax", "SoftmaxWithLoss", "Split", "TanH", "WindowData", "Eltwise", "Power",
    "SigmoidCrossEntropyLoss", "HingeLoss", "MemoryData", "ArgMax", "Threshold", "DummyData", "Slice", "MVN",
    "AbsVal", "Silence", "ContrastiveLoss", "Exp", "Deconvolution",
)
# fmt: on
