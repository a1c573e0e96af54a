"""Checks an sdist and a wheel: installs the wheel into a fresh environment and uses it in an empty folder elsewhere.

The environment shares the other packages of the Python that runs this file. Exits with the output of what failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = (
    *("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "build_backend.py", "setup.py"),
    *("csrc", "a2s_repro", "caffe_weights"),
)
"""Files and folders of the checkout from which a package is built."""

USE = """
import sys
from pathlib import Path
import numpy as np
import a2s_repro
from a2s_repro import commands
from a2s_repro.inference import dense_crf
from a2s_repro.ops import _native

def a2s(words):
    try:
        commands.main(words.split())
    except SystemExit as end:
        assert not end.code, f"`a2s {words}` ended with status {end.code}"

assert Path(a2s_repro.__file__).is_relative_to(sys.prefix), a2s_repro.__file__
assert "cpu" in _native.loaded_devices(), _native.problems
a2s("make-demo-data data --num-train 30 --num-val 2")
a2s("make-init init.caffemodel --width 0.03125")
a2s("convert init.caffemodel init.pth")
lists = "data/ImageSets/Segmentation"
a2s(f"train --init init.pth --data-root data --train-list {lists}/train.txt --val-list {lists}/val.txt --out run"
    " --scales 1 0.5 --width 0.03125 --max-iter 20 --crop 65 --batch-size 2 --iter-size 1 --workers 0")
a2s("segment data/JPEGImages --model run/final.pth --out labels --pad-to 1")
a2s("export run/final.pth net.caffemodel")
dense_crf(np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.float32))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the sdist and of the wheel")
    folder = parser.parse_args().folder.resolve()
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    if lacking := files_of_the_checkout() - files_of(sdist):
        sys.exit(f"{sdist.name} lacks {', '.join(sorted(lacking))}.")
    if not wheel.stem.rpartition("-py3-none-")[2].startswith("linux_"):
        sys.exit(f"{wheel.name} is not tagged as a wheel of native libraries for every Python.")
    with tempfile.TemporaryDirectory() as temporary:
        environment, elsewhere = Path(temporary, "environment"), Path(temporary, "elsewhere")
        elsewhere.mkdir()
        python = fresh_environment(environment)
        pip = [sys.executable, "-m", "pip", "--python", python]
        run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel)
        run(*pip, "check")
        run(environment / "bin" / "a2s", "--version", cwd=elsewhere)
        run(python, "-c", USE, cwd=elsewhere)
    print(f"{sdist.name} is complete, and {wheel.name} trains, segments and exports in another folder")


def files_of_the_checkout() -> set[str]:
    listed = run("git", "ls-files", *BUILT_FROM, cwd=ROOT)
    return set(listed.splitlines())


def files_of(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def fresh_environment(folder: Path) -> Path:
    """Makes an environment without this project, in which all other packages of this Python are linked."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "a2s_repro" not in entry.name:
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def run(*command: object, cwd: Path | None = None) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode != 0:
        sys.exit(f"{shutil.which(str(command[0])) or command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
