"""The backends of the operators that this machine can run."""

from typing import NamedTuple

import torch


class Backend(NamedTuple):
    """A backend and the device of the tensors that it takes."""

    name: str
    device: str

    def __str__(self) -> str:
        return self.name if self.name == "reference" else f"{self.name}-{self.device}"


BACKENDS = [Backend("reference", "cpu"), Backend("native", "cpu")]
if torch.cuda.is_available():
    BACKENDS.append(Backend("native", "cuda"))
