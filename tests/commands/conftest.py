"""Commands that run in the process of the tests leave its settings as they were."""

import warnings

import pytest

from a2s_repro.commands import run


@pytest.fixture(autouse=True)
def settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(run.memory, "keep_freed_memory", lambda: None)
