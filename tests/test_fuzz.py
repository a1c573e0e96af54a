"""Fuzzing: every mutated file is read or refused with a one-line error, in bounded memory and time."""

import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import to_caffe
from a2s_repro.checkpoint.snapshots import Snapshot, load_snapshot, save_snapshot
from a2s_repro.checkpoint.weights import Weights, load_weights, save_weights
from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.images import read_image, read_label
from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.errors import InputError
from a2s_repro.models import ShareNet, Widths
from a2s_repro.recipes import Recipe
from caffe_weights import CaffeFileError, SolverState, read_caffemodel, read_solverstate, write_caffemodel
from caffe_weights import write_solverstate as write_state
from tests.data.sources import pack

SECONDS = 10
"""Time limit of a read, generous for slow machines."""

SLACK = 2**25
"""Allowed memory in bytes for decoders, allocators and the pixels of a small image."""

PUBLISHED = PublishedFiles("shapes", "https://example.org", "shapes", ("JPEGImages/*.jpg",))


def read_archive(path: Path) -> None:
    for file in source_files(path, PUBLISHED):
        file.read()


READERS: dict[str, Callable[[Path], object]] = {
    "weights.pth": load_weights,
    "weights.safetensors": load_weights,
    "snapshot.pth": load_snapshot,
    "net.caffemodel": read_caffemodel,
    "v1.caffemodel": read_caffemodel,
    "net.solverstate": read_solverstate,
    "list.txt": lambda path: read_list(path, path.parent),
    "ids.txt": lambda path: read_list(path, path.parent),
    "classes.txt": read_classes,
    "image.jpg": read_image,
    "image.png": read_image,
    "label.png": lambda path: read_label(path, len(CLASSES)),
    "archive.tar": read_archive,
    "archive.tgz": read_archive,
    "archive.zip": read_archive,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder with an intact file of every kind, and the data set of the list."""
    folder = tmp_path_factory.mktemp("sound")
    shapes = make_demo_data(folder / "shapes", num_train=2, num_val=1)
    for name in ("archive.tar", "archive.tgz", "archive.zip"):
        pack(shapes, folder / name)
    (folder / "JPEGImages").symlink_to(shapes / "JPEGImages")
    (folder / "SegmentationClass").symlink_to(shapes / "SegmentationClass")
    photograph = sorted((shapes / "JPEGImages").iterdir())[0]
    (folder / "image.jpg").write_bytes(photograph.read_bytes())
    label = sorted((shapes / "SegmentationClass").iterdir())[0].read_bytes()
    (folder / "label.png").write_bytes(label)
    (folder / "image.png").write_bytes(label)
    ids = sorted(path.stem for path in (shapes / "JPEGImages").iterdir())
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in ids))
    (folder / "list.txt").write_text(
        "".join(f"/JPEGImages/{name}{photograph.suffix} /SegmentationClass/{name}.png\n" for name in ids)
    )
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))

    torch.manual_seed(0)
    recipe = Recipe("", num_classes=3, scales=(1, 0.5), merge="attention", width=1 / 64)
    net = ShareNet(3, (1, 0.5), widths=Widths().scaled(1 / 64))
    state = net.state_dict()
    meta = {"model": net.config(), "classifier": "fc8_voc12", "pool5a": False}
    save_weights(folder / "weights.pth", state, meta)
    save_weights(folder / "weights.safetensors", state, meta)
    solver = recipe.optimizer(net).state_dict()
    save_snapshot(folder / "snapshot.pth", Snapshot(0, state, solver, {}, [], recipe.config()))
    caffe = to_caffe(Weights(state, meta))
    write_caffemodel(folder / "net.caffemodel", caffe)
    write_caffemodel(folder / "v1.caffemodel", caffe, v1=True)
    history = [blob for layer in caffe.layers for blob in layer.blobs]
    write_state(folder / "net.solverstate", SolverState(20, 2, "net.caffemodel", history))
    return folder


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Applies one to four changes: bytes set, flipped, dropped, doubled, moved, made a large number, or truncation."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(damaged) + 1) if draw.random() < 0.7 else draw.randrange(min(len(damaged), 64) + 1)
        length = draw.choice((1, 2, 4, 8, 60))
        piece = bytes(damaged[at : at + length])
        change = draw.choice(("set", "flip", "drop", "double", "move", "large", "cut"))
        if change == "set":
            damaged[at : at + len(piece)] = draw.randbytes(len(piece))
        elif change == "flip":
            damaged[at : at + 1] = bytes(byte ^ 1 << draw.randrange(8) for byte in piece[:1])
        elif change == "drop":
            del damaged[at : at + length]
        elif change == "double":
            damaged[at:at] = piece
        elif change == "move":
            to = draw.randrange(len(damaged) + 1)
            damaged[to : to + len(piece)] = piece
        elif change == "large":
            damaged[at : at + len(piece)] = draw.choice((b"\xff", b"\x7f")) * len(piece)
        elif draw.random() < 0.2:
            del damaged[at:]
    return bytes(damaged)


def repacked(content: bytes, path: Path, draw: random.Random) -> None:
    """Writes a torch.save archive with a damaged pickle and correct checksums."""
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        parts = [(part, archive.read(part)) for part in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for part, inside in parts:
            archive.writestr(part, mutated(inside, draw) if part.filename.endswith("data.pkl") else inside)


@contextmanager
def at_once() -> Iterator[None]:
    """Fails if the block takes longer than SECONDS."""

    def late(*_: object) -> None:
        pytest.fail(f"no end after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory(field: str) -> int:
    """Memory of this process in bytes from /proc: VmRSS, the current, or VmHWM, the peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def read(reader: Callable[[Path], object], path: Path) -> int:
    """Reads a file or checks that the error is one line; returns the peak memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    with at_once():
        try:
            reader(path)
        except (InputError, CaffeFileError) as error:
            assert "\n" not in str(error).strip() and str(error).endswith("."), str(error)
        except OSError as error:
            assert error.filename
    return memory("VmHWM") - before


AMOUNTS = [80, pytest.param(2000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("mutations", AMOUNTS)
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(sound, tmp_path, name, mutations):
    content = (sound / name).read_bytes()
    allowed = 2 * read(READERS[name], sound / name) + SLACK
    folder = sound if name in ("list.txt", "ids.txt") else tmp_path
    path = folder / f"mutated{Path(name).suffix}"
    for seed in range(mutations):
        path.write_bytes(mutated(content, random.Random(seed)))
        assert read(READERS[name], path) < allowed, seed


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:Detected pickle protocol")
@pytest.mark.parametrize("mutations", AMOUNTS)
@pytest.mark.parametrize("name", ["weights.pth", "snapshot.pth"])
def test_a_damaged_pickle_with_right_checksums_is_read_or_refused(sound, tmp_path, name, mutations):
    content = (sound / name).read_bytes()
    allowed = 2 * read(READERS[name], sound / name) + SLACK
    for seed in range(mutations):
        repacked(content, tmp_path / name, random.Random(seed))
        assert read(READERS[name], tmp_path / name) < allowed, seed


def test_a_small_file_with_many_pixels_is_refused_before_decoding(sound, tmp_path):
    """The size in the header is changed, with its checksum, to 8000 x 8000 pixels in a few kilobytes."""
    content = bytearray((sound / "image.jpg").read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = np.array([8000, 8000], ">u2").tobytes()
    path = tmp_path / "bomb.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.jpg claims 8000x8000 pixels, too many for its \d+ bytes"):
        read_image(path)


def test_archive_entries_larger_than_the_file_are_refused(sound, tmp_path):
    """A compressed torch archive, in which an entry of zeros expands a thousandfold."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(sound / "weights.pth") as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in archive.infolist():
            inside = archive.read(part)
            packed.writestr(part.filename, bytes(10**7) if part.filename.endswith("data/0") else inside)
    with pytest.raises(InputError, match="its parts claim to be larger than the file"):
        load_weights(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    """A pickle that calls os.system has no effect, in any container."""

    class Call:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    for content in (Call(), {"format": "a2s_repro.weights/1", "state_dict": {}, "meta": Call()}):
        for reader in (load_weights, load_snapshot):
            torch.save(content, tmp_path / "call.pth")
            with suppress(InputError):
                reader(tmp_path / "call.pth")
    assert not (tmp_path / "executed").exists()
