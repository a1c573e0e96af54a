"""setuptools' build backend, which builds with the torch that is installed.

pip builds in an environment of its own, where the packages of the one that it installs to are hidden. There the newest
torch would be gigabytes to download, and of another CUDA than the user's, perhaps, for which nvcc would not fit. Only
where no torch is installed, a build requires one.
"""

import sysconfig
from importlib import metadata

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

OLDEST = (2, 10)


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + required_torch()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + required_torch()


def required_torch() -> list[str]:
    """The requirement of a torch for the build; none if that of this Python will do."""
    for torch in metadata.distributions(name="torch", path=[sysconfig.get_path("platlib")]):
        if tuple(map(int, torch.version.split(".")[:2])) >= OLDEST:
            return []
    return ["torch>={}.{}".format(*OLDEST)]
