"""TensorFloat-32 through both of torch's interfaces, and the processors on which `bf16` is warned of."""

import warnings

import pytest
import torch

from a2s_repro.runtime.precision import check_precision, float32_products

CPU = torch.device("cpu")
PROCESSORS = {
    "Intel with AMX": {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True},
    "Intel without": {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False},
    "older": {"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False},
    "AMD": {"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_bf16_is_warned_of_where_it_takes_longer(name, monkeypatch):
    capabilities = {"architecture": "x86_64"} | PROCESSORS[name]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_precision("bf16", CPU)
    assert bool(told) == (name in ("Intel without", "older"))
    if told:
        assert "precision caffe takes less time" in str(told[0].message)


def test_nothing_else_is_warned_of(monkeypatch):
    """Nor anything where torch does not tell what a processor has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_precision("caffe", CPU)
        check_precision("bf16", torch.device("cuda"))
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        check_precision("bf16", CPU)


def tf32_settings() -> dict[str, object]:
    """What the readers of both interfaces see. The older ones raise where the newer one contradicts them."""
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
def test_all_readers_see_the_same_and_the_settings_come_back(mode, allowed):
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


def test_settings_made_by_the_newer_interface_come_back():
    """They contradict each other in the older interface's eyes, so that reading it raises; that is no obstacle."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    with float32_products("ieee"):  # restores torch's own settings after the test
        matmul.fp32_precision, convolution.fp32_precision = "tf32", "ieee"
        with float32_products("ieee"):
            assert not tf32_settings()["convolution is TF32"]
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "ieee")
    assert not tf32_settings()["matmul.allow_tf32"]
