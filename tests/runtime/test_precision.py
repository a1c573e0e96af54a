"""Names of precisions, TensorFloat-32 through both of torch's interfaces, and the warning about slow `bf16`."""

import warnings

import pytest
import torch

from a2s_repro.errors import InputError
from a2s_repro.runtime.precision import check_precision, float32_products, precision_named

CPU = torch.device("cpu")
PROCESSORS = {
    "Intel with AMX": {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True},
    "Intel without": {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False},
    "older": {"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False},
    "AMD": {"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_slow_bf16_causes_a_warning(name, monkeypatch):
    capabilities = {"architecture": "x86_64"} | PROCESSORS[name]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_precision("bf16", CPU)
    assert bool(caught) == (name in ("Intel without", "older"))
    if caught:
        assert "precision fp32 takes less time" in str(caught[0].message)


def test_version_0_1_named_fp32_caffe():
    assert [precision_named(name) for name in ("caffe", "fp32", "tf32", "bf16")] == ["fp32", "fp32", "tf32", "bf16"]
    with pytest.raises(InputError, match="precision 'fp16' is not known; it is one of fp32, tf32, bf16"):
        precision_named("fp16")


def test_nothing_else_causes_a_warning(monkeypatch):
    """This includes versions of torch without get_capabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_precision("fp32", CPU)
        check_precision("bf16", torch.device("cuda"))
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        check_precision("bf16", CPU)


def tf32_settings() -> dict[str, object]:
    """The settings read through both interfaces; reading the older one raises if the newer one contradicts it."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=torch.backends.cudnn.allow_tf32):
        pass
    return {
        "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul is TF32": torch.backends.cuda.matmul.fp32_precision == "tf32",
        "convolution is TF32": torch.backends.cudnn.conv.fp32_precision == "tf32",
    }


@pytest.mark.parametrize(("mode", "allowed"), [("ieee", False), ("tf32", True)])
def test_both_interfaces_agree_and_settings_are_restored(mode, allowed):
    before = tf32_settings()
    with float32_products(mode):
        assert tf32_settings() == {
            "matmul.allow_tf32": allowed,
            "cudnn.allow_tf32": allowed,
            "float32_matmul_precision": "high" if allowed else "highest",
            "matmul is TF32": allowed,
            "convolution is TF32": allowed,
        }
    assert tf32_settings() == before


def test_settings_of_the_newer_interface_are_restored():
    """These settings contradict the older interface, so that reading it raises."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    with float32_products("ieee"):  # restores torch's own settings after the test
        matmul.fp32_precision, convolution.fp32_precision = "tf32", "ieee"
        with float32_products("ieee"):
            assert not tf32_settings()["convolution is TF32"]
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "ieee")
    assert not tf32_settings()["matmul.allow_tf32"]
