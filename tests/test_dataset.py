import json
from pathlib import Path

import pytest

from cmgcli import dataset
from cmgcli.dataset import Record, caption_lookup, read_dataset
from cmgcli.errors import DatasetError, SettingsError


@pytest.fixture
def parts(tmp_path):
    """A folder with a.png, b.png and sub/c.png; only their names matter here."""
    folder = tmp_path / "parts"
    touch(folder, "a.png", "b.png", "sub/c.png")
    return folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


FULL = "file_name,text\na.png,nut\nb.png,bolt\nsub/c.png,gear\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", FULL),
        ("x.csv", "\ufeff" + FULL.replace("\n", "\r\n") + "\r\n\r\n"),
        ("x.csv", FULL.replace("file_name,text", " image , caption ")),
        ("x.csv", 'text,file_name,more\nnut,a.png,1\n"bolt",b.png,\ngear,sub/c.png\n'),
        ("x.tsv", FULL.replace(",", "\t")),
        ("x.TAB", FULL.replace(",", "\t")),
        ("x.jsonl", '{"file_name":"a.png","text":"nut"}\n\n{"image":"b.png","caption":"bolt","label":null}\r\n'
                    '{"file_name":"sub/c.png","text":"gear","more":[1]}'),
    ],
)  # fmt: skip
def test_the_three_formats_say_the_same(parts, tmp_path, name, text):
    records = read_dataset(parts, write(tmp_path / name, text)).records
    assert [(r.file_name, r.text) for r in records] == [("a.png", "nut"), ("b.png", "bolt"), ("sub/c.png", "gear")]
    assert records[2] == Record("sub/c.png", (parts / "sub/c.png").resolve(), "gear")


def test_all_columns(parts, tmp_path):
    touch(parts, "masks/b.png", "sub/c_mask.png")
    (parts / "sub/c.png").unlink()
    text = (
        "file_name,text,split,label,defect,mask\n"
        'a.png,"a nut, ""M6""\nof steel",train,0,,\n'
        "b.png,bolt,test,1,scratch,masks/b.png\n"
    )
    (parts / "sub/c_mask.png").rename(parts / "ground_truth.png")  # named by no one, in no folder of masks
    with pytest.raises(DatasetError, match="no line for 'ground_truth.png'"):
        read_dataset(parts, write(tmp_path / "x.csv", text))
    (parts / "ground_truth.png").unlink()
    first, second = read_dataset(parts, tmp_path / "x.csv").records
    assert first == Record("a.png", (parts / "a.png").resolve(), 'a nut, "M6"\nof steel', "train", 0)
    mask = (parts / "masks/b.png").resolve()
    assert second == Record("b.png", (parts / "b.png").resolve(), "bolt", "test", 1, "scratch", mask)


def test_paths_beside_the_caption_file(parts, tmp_path):
    text = FULL.replace("a.png", "parts/a.png").replace("b.png", "parts/b.png").replace("sub/", "parts/sub/")
    records = read_dataset(parts, write(tmp_path / "x.csv", text)).records
    assert [record.path for record in records] == [(parts / name).resolve() for name in ("a.png", "b.png", "sub/c.png")]
    touch(tmp_path / "other", "z.png")  # the paths do not speak of this folder, so its images need no caption
    assert len(read_dataset(tmp_path / "other", tmp_path / "x.csv").records) == 3


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("file_name,txt\na.png,nut\n", 1, "no column 'text' (or 'caption') among 'file_name', 'txt': rename 'txt'"),
        ("Filename,text\na.png,nut\n", 1, "no column 'file_name' (or 'image') among 'Filename', 'text': rename 'Filen"),
        ("x,text\na.png,nut\n", 1, "add a column 'file_name'"),
        ("file_name;text\na.png;nut\n", 1, "separate the columns by commas"),
        ("file_name,text\na.png,nut, of steel\n", 2, "3 cells for 2 columns: put a text that contains the separator"),
        ("file_name,text\na.png,  \n", 2, "the text of 'a.png' is empty"),
        ("file_name,text\na.png\n", 2, "the text of 'a.png' is empty"),
        ("file_name,text\n,nut\n", 2, "the file name is empty"),
        ("file_name,text\na.png,nut\nsub/../a.png,nut\n", 3, "'sub/../a.png' is also in line 2"),
        ('file_name,text\na.png,"a\nnut"\nz.png,bolt\n', 4, "'z.png' does not exist"),
        ("file_name,text\n../secret.png,nut\n", 2, "'../secret.png' lies outside"),
        ("file_name,text\n/etc/passwd,nut\n", 2, "'/etc/passwd' lies outside"),
        ("file_name,text\na\0.png,nut\n", 2, "no usable file name"),
        (f"file_name,text\n{'a' * 5000}.png,nut\n", 2, "no usable file name"),
        ("file_name,text,label\na.png,nut,good\n", 2, "label is 'good': expected 0"),
        ("file_name,text,label\na.png,nut,-1\n", 2, "label is '-1'"),
        ("file_name,text,label\na.png,nut,1.5\n", 2, "label is '1.5': expected 0 (normal), 1 (anomalous), a level of severity above"),
        ('{"file_name": "a.png", "text": "nut", "label": 1.5}\n', 1, "label is 1.5: expected a text or an integer"),
        ("file_name,text,split\na.png,nut,val\n", 2, "split is 'val': expected 'train', 'test'"),
        ("file_name,text,mask\na.png,nut,m.png\n", 2, "the mask 'm.png' does not exist"),
        ('file_name,text\na.png,nut\nb.png,"bolt\n', 3, "close the quotes"),
        (b"file_name,text\na.png,nut\nb.png,\xe4rm\n", 3, "not UTF-8"),
        ("file_name,text\n".encode("utf-16"), 1, "not UTF-8"),
        ('{"file_name": "a.png", "text": "nut"}\n{"file_name": \n', 2, "not valid JSON"),
        ('["a.png", "nut"]\n', 1, "expected an object"),
        ('{"file_name": "a.png", "txt": "nut"}\n', 1, "rename 'txt' to 'text'"),
        ('{"file_name": "a.png", "text": ["nut"]}\n', 1, "text is ['nut']: expected a text"),
        ('{"file_name": "a.png", "text": "nut", "label": NaN}\n', 1, "label is nan"),
        ('{"file_name": "a.png", "text": true}\n', 1, "text is True"),
        ("file_name,text,text\na.png,nut,bolt\n", 1, "2 columns 'text': keep one"),
        ('{"file_name": "\\ud800.png", "text": "nut"}\n', 1, "usable file name"),
    ],
)
def test_bad_caption_files_name_line_and_remedy(parts, tmp_path, text, line, message):
    name = "x.jsonl" if text[:1] in ("{", "[") else "x.csv"
    folder = tmp_path / "captions"
    folder.mkdir()
    touch(tmp_path, "secret.png")
    with pytest.raises(DatasetError) as caught:
        read_dataset(parts, write(folder / name, text))
    said = str(caught.value)
    assert f"{name}', line {line}: " in said and message in said and "\n" not in said


def test_a_link_out_of_the_folder_is_refused(parts, tmp_path):
    touch(tmp_path, "secret.png")
    (parts / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "captions").mkdir()
    with pytest.raises(DatasetError, match="'link.png' lies outside"):
        read_dataset(parts, write(tmp_path / "captions/x.csv", FULL + "link.png,nut\n"))


def test_an_image_without_caption_needs_allow_missing(parts, tmp_path):
    captions = write(tmp_path / "x.csv", "file_name,text\na.png,nut\ngone.png,gear\n")
    with pytest.raises(DatasetError, match="line 3: 'gone.png' does not exist .* --allow-missing"):
        read_dataset(parts, captions)
    found = read_dataset(parts, captions, allow_missing=True)
    assert [record.file_name for record in found.records] == ["a.png"]
    assert found.missing == (
        "'gone.png' (line 3) does not exist", "'b.png' has no caption", "'sub/c.png' has no caption",
    )  # fmt: skip
    write(captions, "file_name,text\na.png,nut\n")
    with pytest.raises(DatasetError, match=r"x.csv': no line for 'b.png' .*2 such images.*--allow-missing"):
        read_dataset(parts, captions)


def test_nothing_to_read(parts, tmp_path):
    for images, captions, message in [
        (tmp_path / "none", None, "none' does not exist: give the folder"),
        (parts / "a.png", None, "is not a folder"),
        (parts, tmp_path / "none.csv", "none.csv' cannot be read: No such file"),
        (parts, parts, "cannot be read: Is a directory"),
        (parts, write(tmp_path / "empty.csv", ""), "at least one is needed"),
        (parts, write(tmp_path / "header.csv", "file_name,text\n"), "at least one is needed"),
        (parts, None, "no captions: give a caption file"),
    ]:
        with pytest.raises(DatasetError, match=message):
            read_dataset(images, captions)
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match="at least one is needed"):
        read_dataset(tmp_path / "void", caption="nut")


def test_one_caption_for_all(parts, tmp_path):
    touch(parts, "masks/a.png")
    records = read_dataset(parts, caption="a nut").records
    assert [(r.file_name, r.text) for r in records] == [(n, "a nut") for n in ("a.png", "b.png", "sub/c.png")]
    for captions, caption in [(tmp_path / "x.csv", "a nut"), (None, " ")]:
        with pytest.raises(SettingsError):
            read_dataset(parts, captions, caption=caption)


def test_captions_beside_their_images(parts):
    write(parts / "a.txt", "a nut\n  of steel\n")
    write(parts / "license.txt", "not a caption")
    with pytest.raises(DatasetError, match=r"b.txt' does not exist \(2 images without caption\).*--allow-missing"):
        read_dataset(parts)
    found = read_dataset(parts, allow_missing=True)
    assert found.records == (Record("a.png", (parts / "a.png").resolve(), "a nut of steel"),)
    assert found.missing == ("'b.png' has no caption", "'sub/c.png' has no caption")
    for content, message in [(b" \n", "a.txt', line 1: the text is empty"), (b"\xff", "not UTF-8")]:
        write(parts / "a.txt", content)
        with pytest.raises(DatasetError, match=message):
            read_dataset(parts, allow_missing=True)


@pytest.mark.parametrize("labels", [("1", "0"), ("1.0", "0.00")])
def test_labels_as_other_programs_write_them(parts, tmp_path, labels):
    text = f"file_name,text,label\na.png,nut,{labels[0]}\nb.png,nut,{labels[1]}\nsub/c.png,nut,\n"
    assert [record.label for record in read_dataset(parts, write(tmp_path / "x.csv", text)).records] == [1, 0, None]
    text = "".join(f'{{"file_name": "{name}", "text": "nut", "label": {label}}}\n' for name, label in zip(("a.png", "b.png", "sub/c.png"), ("true", "0.0", "null")))
    assert [record.label for record in read_dataset(parts, write(tmp_path / "x.jsonl", text)).records] == [1, 0, None]


def test_mvtec_layout(tmp_path):
    root = tmp_path / "metal_nut"
    names = ("train/good/0.png", "test/good/0.png", "test/bent/10.png", "test/bent/9.png")
    touch(root, *names, "ground_truth/bent/10_mask.png", "ground_truth/bent/9.png", "ground_truth/bent/10.png")
    records = read_dataset(root).records
    assert {record.text for record in records} == {"metal nut"}
    assert [(r.file_name, r.split, r.label, r.defect) for r in records] == [
        ("test/bent/9.png", "test", 1, "bent"), ("test/bent/10.png", "test", 1, "bent"),
        ("test/good/0.png", "test", 0, ""), ("train/good/0.png", "train", 0, ""),
    ]  # fmt: skip
    assert [record.mask for record in records] == [*((root / "ground_truth/bent" / name).resolve() for name in ("9.png", "10_mask.png")), None, None]
    assert dataset.training_records(records) == records[3:] and dataset.test_records(records) == records[:3]
    assert read_dataset(root, caption="a nut").records[0].text == "a nut"
    touch(root, "test/loose.png")
    assert [r.label for r in read_dataset(root).records if "loose" in r.file_name] == [None]


def test_the_test_half_of_the_mvtec_layout_alone_can_be_judged(tmp_path):
    touch(tmp_path, "test/good/0.png", "test/bent/1.png", "ground_truth/bent/1_mask.png")
    records = read_dataset(tmp_path).records
    assert [(record.label, record.split, record.mask is None) for record in records] == [(1, "test", False), (0, "test", True)]
    assert not dataset.training_records(records)


def test_subsets_and_lookup():
    normal, odd, unknown = (Record(n, Path(n), n, label=k) for n, k in [("a", 0), ("b", 1), ("c", None)])
    records = (normal, odd, unknown)
    assert dataset.training_records(records) == (normal, unknown)
    assert dataset.test_records(records) == records
    tested = Record("d", Path("d"), "d", split="test")
    assert dataset.training_records((*records, tested)) == ()
    assert dataset.test_records((*records, tested)) == (tested,)
    assert dataset.caption_lookup(records) == {Path("a"): "a", Path("b"): "b", Path("c"): "c"}


def test_names_that_are_not_plain_survive(parts, tmp_path):
    name = 'ärger, "1"\n.png'
    touch(parts, name)
    text = json.dumps({"file_name": name, "text": "Mutter"}) + "\n"
    text += "".join(json.dumps({"file_name": n, "text": "nut"}) + "\n" for n in ("a.png", "b.png", "sub/c.png"))
    assert read_dataset(parts, write(tmp_path / "x.jsonl", text)).records[0].path == (parts / name).resolve()


def test_a_lookup_needs_no_mask_and_not_every_image(parts):
    captions = write(parts / "x.csv", "file_name,text,mask\na.png,nut,m.png\nnone.png,bolt,\n")
    assert dataset.read_lookup(captions, parts) == {(parts / "a.png").resolve(): "nut"}
    for text, words in (("a.png,nut\na.png,bolt\n", "line 3: 'a.png' is also in line 2"), ("none.png,bolt\n", "no image with a caption found")):
        with pytest.raises(DatasetError, match=words):
            dataset.read_lookup(write(parts / "x.csv", f"file_name,text\n{text}"), parts)
    with pytest.raises(DatasetError, match="does not exist: give the folder"):
        dataset.read_lookup(captions, parts / "none")


def test_a_lookup_is_a_mapping_of_paths_that_takes_little_memory(tmp_path):
    records = [Record(f"{i}.png", tmp_path / f"{i}.png", "".join(["a ", "part"])) for i in range(3)]
    lookup = caption_lookup(records)
    assert lookup == {record.path: "a part" for record in records} and list(lookup) == [record.path for record in records] and len(lookup) == 3
    assert lookup[tmp_path / "1.png"] == "a part" and lookup.get(tmp_path / "9.png") is None and tmp_path / "2.png" in lookup
    first, *others = lookup.values()
    assert all(other is first for other in others) and first == "a part"
