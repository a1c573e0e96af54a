"""Multi-scale merging operators: fused native kernels with pure-torch references of the same meaning.

    from a2s_repro import ops
    merged, weights = ops.scale_merge([scores1, scores075, scores05], attention_logits)

`use_backend("reference")` runs the references instead.
"""

from a2s_repro.ops import _native

_native.load()

from a2s_repro.ops._native import use_backend  # noqa: E402
from a2s_repro.ops.interp import interp, interp_size  # noqa: E402
from a2s_repro.ops.interp_concat import interp_concat  # noqa: E402
from a2s_repro.ops.interp_concat_conv2d import interp_concat_conv2d  # noqa: E402
from a2s_repro.ops.interp_shift_add import interp_shift_add  # noqa: E402
from a2s_repro.ops.scale_average import scale_average  # noqa: E402
from a2s_repro.ops.scale_max import scale_max  # noqa: E402
from a2s_repro.ops.scale_merge import scale_merge  # noqa: E402
from a2s_repro.ops.scale_softmax import scale_softmax  # noqa: E402
from a2s_repro.ops.segment import segment  # noqa: E402

__all__ = [
    "interp",
    "interp_concat",
    "interp_concat_conv2d",
    "interp_shift_add",
    "interp_size",
    "scale_average",
    "scale_max",
    "scale_merge",
    "scale_softmax",
    "segment",
    "use_backend",
]
