"""Fuzzing: every mutated file is read or refused with a one-line error, in bounded memory and time."""

import contextlib
import copy
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.analysis.compare_runs import comparison, read_run
from a2s_repro.analysis.report.run_folder import read_run_folder
from a2s_repro.caffe.conversion import to_caffe
from a2s_repro.checkpoint.snapshots import Snapshot, load_snapshot, save_snapshot
from a2s_repro.checkpoint.weights import Weights, load_weights, save_weights
from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.data.coco import ORDERS, _read_instances, paint
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.images import read_image, read_label
from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.errors import InputError, printable
from a2s_repro.inference.sources import find_sources
from a2s_repro.inference.video import FrameReader, video_file
from a2s_repro.models import ShareNet, Widths
from a2s_repro.recipes import Recipe
from a2s_repro.training import Trainer
from a2s_repro.training.run_log import cost, read_log
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


COCO_IMAGE = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}
COMPRESSED = "c25?0000000Q="
"""A box in COCO's compressed run lengths."""
COCO_ANNOTATIONS = [
    {
        "id": 7,
        "category_id": 3,
        "iscrowd": 0,
        "area": 100,
        "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12], [0, 0, 4, 0, 4, 4]],
    },
    {"id": 8, "category_id": 5, "iscrowd": 1, "area": 9, "segmentation": {"counts": [100, 9, 491], "size": [20, 30]}},
    {
        "id": 9,
        "category_id": 90,
        "iscrowd": 0,
        "area": 9,
        "segmentation": {"counts": "c25?0000000Q=", "size": [20, 30]},
    },
]
for listed in COCO_ANNOTATIONS:
    listed["image_id"] = 1
ODD_VALUES = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, 1e12, -1e12, float("nan"), float("inf"), "", "3", "\ud800"),
    *([], [[]], [None], {}, {"counts": [], "size": []}, [1, 2], [[1, 2, 3, 4]], "zz" * 50, [[0, 0, 30, 20] * 50]),
)


def altered(value: object, draw: random.Random) -> object:
    """JSON with one part, at any depth, replaced, dropped or doubled."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, changed = draw.choice(keys), copy.copy(value)
        change = draw.random()
        if change < 0.08:
            del changed[key]
        elif change < 0.12 and isinstance(changed, list):
            changed.insert(key, changed[key])
        else:
            changed[key] = altered(value[key], draw)
        return changed
    return draw.choice(ODD_VALUES)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("mutations", AMOUNTS)
def test_altered_coco_annotations_are_painted_or_refused(tmp_path, mutations):
    """Both by `paint` and from a file, in the same labels twice."""
    pytest.importorskip("pycocotools")

    def twice(task: tuple[dict, list]) -> None:
        assert np.array_equal(paint(*task), paint(*task))

    assert len(np.unique(paint(COCO_IMAGE, COCO_ANNOTATIONS))) == 4
    for seed in range(mutations):
        draw = random.Random(seed)
        image, annotations = COCO_IMAGE, COCO_ANNOTATIONS
        for _ in range(draw.randint(1, 3)):
            if draw.random() < 0.2:
                image = altered(image, draw)
            else:
                annotations = altered(annotations, draw)
        if isinstance(image, dict) and COCO_IMAGE.keys() <= image.keys() and isinstance(annotations, list):
            assert read(twice, (image, annotations)) < SLACK, seed


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("mutations", AMOUNTS)
def test_an_altered_coco_file_is_prepared_or_refused(sound, tmp_path, mutations):
    pytest.importorskip("pycocotools")
    content = {
        "images": [COCO_IMAGE],
        "annotations": COCO_ANNOTATIONS,
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "toothbrush"}],
    }
    file = tmp_path / "instances_train2014.json"
    for seed in range(mutations // 4):
        draw = random.Random(seed)
        file.write_text(json.dumps(altered(content, draw)))
        reader = partial(_read_instances, split="train", count=10, order=draw.choice(ORDERS))
        assert read(lambda path, reader=reader: reader(path.parent), file) < SLACK, seed


def altered_tensor(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
    dtype = draw.choice((torch.int64, torch.float64, torch.bool, torch.bfloat16))
    fill = draw.choice((math.nan, math.inf, 1e38))
    changes = (
        tensor.flatten()[: draw.randint(0, tensor.numel())].clone(),
        tensor.to(dtype),
        tensor[None].clone(),
        torch.full(tensor.shape, fill),
        torch.zeros(1).expand(tensor.shape),
        tensor[:1].clone() if tensor.dim() else tensor,
        torch.empty(0),
    )
    return draw.choice(changes)


def alter_tensors(snapshot: Snapshot, draw: random.Random) -> Snapshot:
    """A snapshot with one to three parts of another shape, type or value, whole by its checksums."""
    model, state = dict(snapshot.model), {key: dict(part) for key, part in snapshot.solver["state"].items()}
    groups, others = copy.deepcopy(snapshot.solver["param_groups"]), {}
    for _ in range(draw.randint(1, 3)):
        tensors = draw.choice([model, *state.values()])
        if tensors and draw.random() < 0.7:
            key = draw.choice(list(tensors))
            tensors[key] = altered_tensor(tensors[key], draw)
        elif draw.random() < 0.5:
            groups = altered(groups, draw)
        else:
            name = draw.choice(("iteration", "random", "losses", "config", "start"))
            others[name] = altered(getattr(snapshot, name), draw)
    return dataclasses.replace(snapshot, model=model, solver={"state": state, "param_groups": groups}, **others)


@pytest.mark.parametrize("mutations", AMOUNTS)
def test_an_altered_snapshot_with_right_checksums_is_resumed_or_refused(sound, tmp_path, mutations):
    """And what is resumed can be trained: a history that does not fit its weight was memory corruption."""
    recipe = Recipe("", num_classes=3, scales=(1, 0.5), merge="attention", width=1 / 64, crop=33)
    shapes = sound / "shapes"
    items = read_list(shapes / "ImageSets/Segmentation/train.txt", shapes)
    trainers = {
        streams: Trainer(recipe, items, torch.device("cpu"), "fp32", seed=0, caffe_streams=streams)
        for streams in (None, "ziggurat")
    }
    snapshots = {}
    for streams, trainer in trainers.items():
        for parameter in trainer.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        trainer.update()
        trainer.recent.append({"loss": 1.0})
        snapshots[streams] = trainer.snapshot()

    def resume(path: Path) -> None:
        trainer = trainers[streams]
        trainer.restore(load_snapshot(path))
        trainer.solver.step()

    for seed in range(mutations):
        draw = random.Random(seed)
        streams = draw.choice(list(trainers))
        with suppress(InputError):  # torch cannot save some of them
            save_snapshot(tmp_path / "snapshot.pth", alter_tensors(snapshots[streams], draw))
            read(resume, tmp_path / "snapshot.pth")


@pytest.mark.parametrize("mutations", AMOUNTS)
def test_an_altered_run_folder_is_read_or_refused(tmp_path, mutations):
    """config.json, log.jsonl and val.json, altered as JSON and as bytes."""
    recipe = Recipe("", num_classes=3, scales=(1, 0.5), merge="attention", width=1 / 64)
    run = {"seed": 0, "init": "init.pth", "train_list": "train.txt", "precision": "fp32", "caffe_streams": None}
    content = {
        "config.json": {
            "recipe": recipe.config(),
            "model": recipe.net().config(),
            "classes": ["a", "b", "c"],
            "run": run,
        },
        "log.jsonl": {
            "iteration": 0,
            "losses": {"loss": 1.0},
            "total": 1.0,
            "lr": 1e-3,
            "seconds": 1,
            "peak_memory": 1,
        },
        "val.json": {"images": 2, "mean_iou": 0.5, "pixel_accuracy": 0.5, "iou": {"a": 0.5}, "attention": None},
    }
    readers = (lambda folder: comparison([read_run(folder)] * 2), read_run_folder, read_log, cost)
    for seed in range(mutations):
        draw = random.Random(seed)
        for name, value in content.items():
            (tmp_path / name).write_text(json.dumps(value) + "\n")
        name = draw.choice(list(content))
        if draw.random() < 0.7:
            (tmp_path / name).write_text(json.dumps(altered(content[name], draw)) + "\n")
        else:
            (tmp_path / name).write_bytes(mutated((tmp_path / name).read_bytes(), draw))
        for reader in readers:
            assert read(reader, tmp_path) < SLACK, seed


@pytest.mark.parametrize("mutations", AMOUNTS)
def test_videos_of_any_name_are_found_and_read(tmp_path, mutations):
    """Names of random bytes: not UTF-8, with colons, percent signs, escapes and line ends."""
    video = tmp_path / "video.avi"
    with video_file(tmp_path / "video.mp4", 10) as film:
        film.write(np.zeros((16, 16, 3), np.uint8))
    video = tmp_path / "video.mp4"
    for seed in range(mutations // 4):
        draw = random.Random(seed)
        letters = draw.choice((b"ab:%\\'\" \n\x1b\xe9\xff", bytes(set(range(1, 256)) - {ord("/")})))
        name = bytes(draw.choice(letters) for _ in range(draw.randint(1, 40)))
        folder = tmp_path / "in"
        folder.mkdir()
        path = Path(os.fsdecode(bytes(folder) + b"/x" + name + b".mp4"))
        path.write_bytes(video.read_bytes())

        def film_of(folder: Path) -> None:
            for source in find_sources([folder]):
                with contextlib.closing(FrameReader(source.path)) as reader:
                    assert reader.read().shape == (16, 16, 3)
                assert printable(source.path).isprintable()

        read(film_of, folder)
        shutil.rmtree(folder)


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
