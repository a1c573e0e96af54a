"""Which processors are warned of `bf16`."""

import warnings

import pytest
import torch

from a2s_repro.runtime.precision import check_precision

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
