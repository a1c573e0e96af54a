"""Only one process at a time writes to a folder, and a killed one leaves no lock."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from a2s_repro.errors import InputError
from a2s_repro.runtime.folder_lock import FolderLock

HOLDER = """
import sys, time
from a2s_repro.runtime.folder_lock import FolderLock
FolderLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_by_the_name_of_its_holder(holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"run is in use by process {holder.pid} \(.*\): wait until that has ended"):
        FolderLock(tmp_path / "run").acquire()


def test_a_killed_process_leaves_no_lock(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path / "run"):
        assert (tmp_path / "run/.lock").is_file()


def test_forked_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    """As the decoding processes of a killed training would for some seconds."""
    lock = FolderLock(tmp_path)
    lock.acquire()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.read(reading, 1)
        os._exit(0)
    lock.release()
    with FolderLock(tmp_path):
        os.write(writing, b"x")
    os.waitpid(child, 0)


@pytest.mark.parametrize("folder", ["/proc", "/proc/x"])
def test_a_folder_that_holds_no_files_is_refused(folder: str) -> None:
    with pytest.raises(InputError, match=rf"^{folder} cannot be written \(No such .*\): give another path"):
        FolderLock(folder).acquire()


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(InputError, match="is in use"):
        FolderLock(tmp_path).acquire()


def test_release_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with FolderLock(tmp_path / "old"):
        pass
    assert list((tmp_path / "old").iterdir()) == []


def test_a_removed_folder_is_noticed(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    lock.acquire()
    lock.check()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="run was removed or replaced while it was written to"):
        lock.check()
    lock.release()
    assert (tmp_path / "run").is_dir()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        FolderLock(tmp_path).acquire()
    assert (tmp_path / "precious").read_text() == "kept"
