"""torch.hub, from the local folder of a checkout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.errors import InputError
from a2s_repro.models import ShareNet, Widths
from tests.paths import ROOT

THIN = Widths().scaled(1 / 32)


def hub(entry: str, *arguments: object, **options: object) -> object:
    return torch.hub.load(str(ROOT), entry, *arguments, source="local", **options)


def test_nets_and_trained_files_come_from_the_hub(tmp_path: Path) -> None:
    net = hub("share_net", num_classes=3, scales=(1, 0.5), widths=THIN)
    assert isinstance(net, ShareNet) and net.num_classes == 3
    save_weights(tmp_path / "model.pth", net.state_dict(), {"model": net.config()})
    result = hub("load", tmp_path / "model.pth")(np.zeros((40, 30), np.uint8))
    assert result.labels.shape == (40, 30)


@pytest.mark.parametrize("entry", ["deeplab_largefov", "share_net", "resnet_dilated8"])
def test_no_trained_weights_are_published(entry: str) -> None:
    with pytest.raises(InputError, match="no trained weights are published"):
        hub(entry, pretrained=True)
