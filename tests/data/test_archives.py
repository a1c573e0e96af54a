"""Reading archives of every kind and unpacked folders, and the errors for bad sources."""

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.errors import InputError

WANTED = PublishedFiles("the set", "https://example.org/set.zip", "outer/inner", ("images/*.jpg", "ids.txt"))
CONTENT = {"outer/inner/images/a.jpg": b"A", "outer/inner/images/b.jpg": b"B" * 70000, "outer/inner/ids.txt": b"a b"}
UNWANTED = {"outer/inner/images/deeper/c.jpg": b"C", "outer/inner/README": b"", "outer/ids.text": b""}


def make(path: Path, content: dict[str, bytes]) -> Path:
    """Makes a folder, a tar or a zip, depending on the suffix."""
    path.parent.mkdir(exist_ok=True)
    match path.suffix:
        case ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
        case ".tar" | ".tgz":
            with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
                for name, data in content.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        case _:
            for name, data in content.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
    return path


def read(source: Path, published: PublishedFiles = WANTED) -> dict[str, bytes]:
    return {str(file.path): file.read() for file in source_files(source, published)}


KINDS = pytest.mark.parametrize("kind", ["set", "set.zip", "set.tar", "set.tgz"])
ARCHIVES = pytest.mark.parametrize("kind", ["set.zip", "set.tar", "set.tgz"])


@KINDS
@pytest.mark.parametrize("lacking", ["", "outer/", "outer/inner/"])
def test_leading_folders_may_be_missing(tmp_path, kind, lacking):
    content = {name.removeprefix(lacking): data for name, data in (CONTENT | UNWANTED).items()}
    source = make(tmp_path / kind, content)
    assert read(source) == {"images/a.jpg": b"A", "images/b.jpg": b"B" * 70000, "ids.txt": b"a b"}


@KINDS
def test_files_have_size_name_and_path(tmp_path, kind):
    files = {file.path: file for file in source_files(make(tmp_path / kind, CONTENT), WANTED)}
    file = files[PurePosixPath("images/b.jpg")]
    assert file.size == 70000
    assert file.name.startswith(str(tmp_path / kind)) and file.name.endswith("outer/inner/images/b.jpg")
    assert (file.on_disk is None) == (kind != "set")


@ARCHIVES
def test_a_leading_dot_in_names_is_ignored(tmp_path, kind):
    assert len(read(make(tmp_path / kind, {f"./{name}": data for name, data in CONTENT.items()}))) == 3


@KINDS
def test_missing_files_are_named_with_their_source(tmp_path, kind):
    source = make(tmp_path / kind, {"outer/inner/ids.txt": b"", "outer/inner/images/a.png": b""})
    with pytest.raises(InputError, match=r"holds no images/\*.jpg, which belongs to the set: .*https://example.org"):
        read(source)


@ARCHIVES
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_truncated_archives_are_named(tmp_path, kind, kept):
    noise = bytes(range(256)) * 100
    source = make(tmp_path / kind, CONTENT | {"outer/inner/images/z.jpg": noise})
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * kept)])
    with pytest.raises(InputError, match=r"set\.\w+ is damaged or no archive .*: download it again"):
        read(source)


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"PK"])
def test_files_that_are_not_archives_are_refused(tmp_path, content):
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"set.zip is damaged or no archive"):
        read(tmp_path / "set.zip")


def test_a_wrong_checksum_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("images/a.jpg", b"first")
        archive.writestr("ids.txt", b"")
    encoded = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(encoded.replace(b"first", b"other"))
    with pytest.raises(InputError, match=r"set.zip is damaged .*CRC"):
        read(tmp_path / "set.zip")


@ARCHIVES
@pytest.mark.parametrize("name", ["../escaped.jpg", "images/../../escaped.jpg", "/etc/escaped.jpg"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, kind, name):
    with pytest.raises(InputError, match=r"unsafe to unpack \('.*escaped.jpg' leads out of its folder\)"):
        read(make(tmp_path / kind, CONTENT | {name: b""}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("images/a.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(InputError, match=r"set.tar: images/a.jpg is a link or no file at all"):
        read(tmp_path / "set.tar")


def test_links_in_a_zip_are_refused(tmp_path):
    member = zipfile.ZipInfo("images/a.jpg")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(InputError, match=r"set.zip: images/a.jpg is a link"):
        read(tmp_path / "set.zip")


def test_absurd_sizes_are_refused_before_reading(tmp_path):
    member = tarfile.TarInfo("images/a.jpg")
    member.size = 2**40
    (tmp_path / "set.tar").write_bytes(member.tobuf() + bytes(2048))
    with pytest.raises(InputError, match=r"images/a.jpg claims to have 1099511627776 bytes"):
        read(tmp_path / "set.tar")


def test_a_photograph_larger_than_photographs_are_is_not_unpacked(tmp_path):
    """Zeros compress a thousandfold: 200 MB from an archive of 200 kB."""
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("images/a.jpg")
        member.size = 200_000_000
        archive.addfile(member, open("/dev/zero", "rb"))  # noqa: SIM115
    tracemalloc.start()
    with pytest.raises(InputError, match=r"images/a.jpg claims to have 200000000 bytes: download the archive again"):
        read(tmp_path / "set.tgz")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_is_refused_before_reading(tmp_path, kind):
    """tarfile reads it whole: 64 MB here, in an archive of 300 kB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2**26
    with gzip.open(tmp_path / "set.tgz", "wb", compresslevel=1) as archive:
        archive.write(header.tobuf())
        for _ in range(2**6):
            archive.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"set.tgz is damaged or no archive \(a header claims to have 67108864 bytes"):
        read(tmp_path / "set.tgz")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_damage_in_bzip2_names_the_archive(tmp_path):
    """bz2 raises an OSError without a file name."""
    source = tmp_path / "set.tar.bz2"
    with tarfile.open(source, "w:bz2") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"images/{number}.jpg")
            member.size = 2_000_000
            archive.addfile(member, open("/dev/urandom", "rb"))  # noqa: SIM115
    content = bytearray(source.read_bytes())
    content[3_000_000:3_000_100] = bytes(100)
    source.write_bytes(content)
    with pytest.raises(InputError, match=r"set.tar.bz2 is damaged or no archive \(.*\): download it again"):
        read(source)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent does not exist: give the archive of the set, or the folder unpacked"):
        read(tmp_path / "absent")
