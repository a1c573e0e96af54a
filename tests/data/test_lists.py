"""List files in both formats, and the errors for bad ones."""

import pytest

from a2s_repro.data.lists import Item, read_classes, read_list, select
from a2s_repro.errors import InputError


@pytest.fixture
def root(tmp_path):
    """A data root in VOC's layout; list files are written to its parent folder."""
    for name in ("JPEGImages/a.jpg", "JPEGImages/b.png", "SegmentationClass/a.png", "SegmentationClass/b.png"):
        path = tmp_path / "voc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "voc"


def listed(root, text, **arguments):
    list_file = root.parent / "list.txt"
    list_file.write_text(text)
    return read_list(list_file, root, **arguments)


def test_two_columns_are_relative_to_the_root(root):
    expected = [
        Item("a", root / "JPEGImages/a.jpg", root / "SegmentationClass/a.png"),
        Item("b", root / "JPEGImages/b.png", root / "SegmentationClass/b.png"),
    ]
    lines = "/JPEGImages/a.jpg /SegmentationClass/a.png\nJPEGImages/b.png SegmentationClass/b.png\n"
    assert listed(root, lines) == expected


def test_ids_give_the_image_and_the_label_map(root):
    assert listed(root, "a\n\nb\n") == [
        Item("a", root / "JPEGImages/a.jpg", root / "SegmentationClass/a.png"),
        Item("b", root / "JPEGImages/b.png", root / "SegmentationClass/b.png"),
    ]


def test_ids_prefer_augmented_labels_unless_label_dir_is_given(root):
    (root / "SegmentationClassAug").mkdir()
    (root / "SegmentationClassAug/a.png").touch()
    assert listed(root, "a")[0].label == root / "SegmentationClassAug/a.png"
    assert listed(root, "a", label_dir="SegmentationClass")[0].label == root / "SegmentationClass/a.png"


@pytest.mark.parametrize("line", ["a", "/JPEGImages/a.jpg", "/JPEGImages/a.jpg /nowhere/a.png"])
def test_unlabelled_lists_ignore_the_label_column(root, line):
    assert listed(root, line, labelled=False) == [Item("a", root / "JPEGImages/a.jpg", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("a\nb\nJPEGImages/a.jpg SegmentationClass/b.png\n", "line 3: 'a' is already on line 1, with another label"),
        ("../../a\n", "line 1: '../../a' leads out of the data root"),
        ("a" * 5000, r"2 of the 2 files .* are missing \(.{100,140}a\.\.\. \(\d+ characters\), "),
        ("a b " * 1200, r"line 1: 'a b (a b )+a?\.\.\. \(4799 characters\)' is not an id, .*separate .* by a tab"),
        ("a\x1b[2J\n", r"JPEGImages/a\\x1b\[2J.jpg"),
        ("version https://git-lfs.github.com/spec/v1\n", "list.txt is a Git LFS pointer"),
        ("a 1\n", "line 1: 'a 1' is not an id, or an image and a label file"),
        ("JPEGImages/a.jpg\n", "line 1: 'JPEGImages/a.jpg' is not"),
        ("JPEGImages/a.jpg SegmentationClass/a.png more\n", "is not an id, or"),
        ("a\nc\nd\ne\nf\n", r"8 of the 10 files .*list.txt names are missing \(.*c.jpg, .*c.png, .*d.jpg, \.\.\.\)"),
    ],
)
def test_bad_lists_are_refused(root, text, message):
    with pytest.raises(InputError, match=message):
        listed(root, text)


def made(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_names_may_hold_spaces(root):
    made(root, "JPEGImages/my dog.jpg", "SegmentationClass/my dog.png", "JPEGImages/c d.png", "SegmentationClass/e.png")
    dog = Item("my dog", root / "JPEGImages/my dog.jpg", root / "SegmentationClass/my dog.png")
    for line in ("my dog", "/JPEGImages/my dog.jpg /SegmentationClass/my dog.png"):
        assert listed(root, f"a\n{line}\n")[1:] == [dog]
    odd = Item("c d", root / "JPEGImages/c d.png", root / "SegmentationClass/e.png")
    assert listed(root, "JPEGImages/c d.png\tSegmentationClass/e.png\n") == [odd]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_no_part_of_a_name(root, tmp_path, encoding):
    (tmp_path / "list.txt").write_text("a\nb\n", encoding=encoding)
    assert [item.id for item in read_list(tmp_path / "list.txt", root)] == ["a", "b"]
    (tmp_path / "classes.txt").write_text("background\ncat\n", encoding=encoding)
    assert read_classes(tmp_path / "classes.txt") == ["background", "cat"]


@pytest.mark.parametrize("suffix", [".JPG", ".tif", ".TIFF", ".bmp", ".webp"])
def test_ids_find_images_of_every_kind(root, suffix):
    made(root, f"JPEGImages/n{suffix}", "SegmentationClass/n.PNG")
    assert listed(root, "n") == [Item("n", root / f"JPEGImages/n{suffix}", root / "SegmentationClass/n.PNG")]
    assert listed(root, f"JPEGImages/n{suffix} SegmentationClass/n.PNG")[0].id == "n"


def test_images_of_one_name_in_several_folders_have_ids_apart(root):
    made(root, *(f"{kind}/{folder}/0001.png" for kind in ("JPEGImages", "labels") for folder in ("seqA", "seqB")))
    lines = "".join(f"JPEGImages/{folder}/0001.png labels/{folder}/0001.png\n" for folder in ("seqA", "seqB"))
    items = listed(root, lines + "JPEGImages/a.jpg SegmentationClass/a.png\n")
    assert [item.id for item in items] == ["seqA/0001", "seqB/0001", "a"]


def test_a_repeated_line_is_a_repeated_image(root):
    assert [item.id for item in listed(root, "a\nb\na\n")] == ["a", "b", "a"]


def test_missing_list_root_or_text_is_named(root):
    with pytest.raises(InputError, match=r"absent.txt does not exist: correct the path"):
        read_list(root / "absent.txt", root)
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        listed(root / "nowhere", "a")
    (root / "picture").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"picture is not a text file"):
        read_list(root / "picture", root)


def test_select_keeps_the_order_of_the_ids_and_names_unknown_ones(root):
    items = listed(root, "a\nb\n")
    assert select(items, ["b", "a"]) == items[::-1]
    with pytest.raises(InputError, match="no image bb, c; the nearest to the first is b"):
        select(items, ["bb", "c"])


def test_classes_are_read_in_order_and_duplicates_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ndining table\n\ncat\n")
    assert read_classes(tmp_path / "classes.txt") == ["background", "dining table", "cat"]
    (tmp_path / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(InputError, match="names cat more than once"):
        read_classes(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("sky\nvoid\nvoid\n")
    assert read_classes(tmp_path / "classes.txt") == ["sky", "void", "void"]
    (tmp_path / "classes.txt").write_text("sky\nro\x1bad\n")
    with pytest.raises(InputError, match=r"names a class 'ro\\x1bad': remove its control characters"):
        read_classes(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_classes(tmp_path / "classes.txt")
