"""A folder with the files that the documents' snippets use."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.models import ShareNet, Widths


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: model.pth, init.pth, street.jpg and the data set data/; the nets are thin and random."""
    folder = tmp_path_factory.mktemp("reader")
    widths = Widths().scaled(1 / 32)
    torch.manual_seed(0)
    net = ShareNet(len(CLASSES), (1, 0.5), widths=widths)
    conversion = from_caffe(random_init(widths, seed=0), "init", allow_missing=True)
    net.load_state_dict(conversion.weights.state_dict, strict=False)
    save_weights(folder / "init.pth", conversion.weights.state_dict, conversion.weights.meta)
    save_weights(folder / "model.pth", net.state_dict(), {"model": net.config(), "classes": CLASSES})
    make_demo_data(folder / "data", num_train=4, num_val=1)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    cv2.imwrite(str(folder / "street.jpg"), picture)
    return folder
