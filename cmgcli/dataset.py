"""Read which image has which caption: a caption file, `NAME.txt` beside `NAME.png`, or the MVTec AD folder layout."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmgcli.errors import DatasetError, ImageError, SettingsError
from cmgcli.files import resolved
from cmgcli.images import find_images, listed, read_mask
from cmgcli.sheet import sheet_rows
from cmgcli.words import counted

_MASK_FOLDERS = frozenset({"masks", "ground_truth"})


@dataclass(frozen=True)
class Record:
    """One image with its caption."""

    file_name: str  # as the caption file spells it; relative to the images folder where there is none
    path: Path  # resolved
    text: str
    split: str = ""  # '', 'train' or 'test'
    label: int | None = None  # 0 normal, 1 anomalous, or levels of severity up to any number
    defect: str = ""
    mask: Path | None = None  # resolved


class Line(NamedTuple):
    """A line of a caption file."""

    number: int  # from 1
    where: str  # file and line, to begin a message with
    record: Record


@dataclass(frozen=True)
class Dataset:
    """The records in the order of their file, and what `allow_missing` left out, one sentence each."""

    records: tuple[Record, ...]
    missing: tuple[str, ...] = ()


def read_dataset(images: Path, captions: Path | None = None, *, caption: str | None = None, allow_missing: bool = False) -> Dataset:
    """Read the records of the folder `images`.

    `captions` is a CSV, TSV (.tsv, .tab) or JSONL (.jsonl, .ndjson, .json) file in UTF-8 with `file_name` (or `image`)
    and `text` (or `caption`), and optionally `split`, `label`, `defect` and `mask`. Its paths are relative to
    `images`, else to its own folder. Without it the folder speaks: a caption is `caption` for every image, else
    `NAME.txt` beside the image, else, in the MVTec AD layout (`train/good`, `test/<defect>`,
    `ground_truth/<defect>/NAME_mask.png` or `NAME.png`), the folder's name in words; that layout also gives split, label, defect
    and mask.

    `allow_missing` leaves out images without a caption and captions without an image instead of refusing them.

    Raises DatasetError, in one line with file, line number and remedy; SettingsError where `captions` and `caption`
    are both given.
    """
    if captions is not None and caption is not None:
        raise SettingsError("a caption file and one caption for all images exclude each other: give one of them")
    if caption is not None and not caption.strip():
        raise SettingsError("the caption for all images is empty: describe what they show")
    images = Path(images)
    _check_folder(images)
    if captions is None:
        dataset = _read_folder(images, caption, allow_missing)
    else:
        dataset = _read_captions(images, Path(captions), allow_missing)
    _check_any(dataset.records, images if captions is None else captions)
    return dataset


def _check_folder(images: Path) -> None:
    if not os.path.isdir(images):
        state = "is not a folder" if os.path.exists(images) else "does not exist"
        raise DatasetError(f"{str(images)!r} {state}: give the folder that holds the images")


def _check_any(records: Sized, source: Path) -> None:
    if not records:
        raise DatasetError(f"{str(source)!r}: no image with a caption found: at least one is needed")


def training_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """The normal records to fit on: of split 'train' where any record has a split, and never labelled anomalous."""
    return tuple(record for record in _of_split(records, "train") if not record.label)


def known_bad_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """The records of split 'train' that are labelled anomalous; none where no record has a split, for then `test_records` are all of them."""
    return tuple(record for record in records if record.split == "train" and record.label)


def mask_of(record: Record, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of a record that has one; DatasetError where it is not of its image's shape, ImageError where it cannot be read."""
    mask = read_mask(record.mask)
    if mask.shape != shape:
        raise DatasetError(
            f"mask {record.mask} of {record.file_name}: expected the size of its image, {shape[1]} x {shape[0]}, "
            f"got {mask.shape[1]} x {mask.shape[0]}; draw it on the image as it is, or leave the column mask empty"
        )
    return mask


def test_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """The records to evaluate on: of split 'test' where any record has a split, else all."""
    return _of_split(records, "test")


class Lookup(Mapping[Path, str]):
    """Captions by resolved path, kept by its text, which takes a fraction of the memory of a Path: a run may have millions."""

    def __init__(self, records: Iterable[Record]) -> None:
        texts: dict[str, str] = {}  # each caption once
        self._by_path = {str(record.path): texts.setdefault(record.text, record.text) for record in records}

    def __getitem__(self, path: Path | str) -> str:
        return self._by_path[str(path)]

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)


def caption_lookup(records: Iterable[Record]) -> Lookup:
    """The caption of each image by its resolved path."""
    return Lookup(records)


def read_lookup(captions: Path, images: Path) -> Lookup:
    """`caption_lookup` of a caption file alone: the folder is not looked through, and what the file says beside captions need not be there.

    Raises DatasetError as `read_dataset` does.
    """
    _check_folder(images)
    found = Lookup(line.record for line in _distinct_lines(captions, images, need_masks=False) if line.record.path.is_file())
    _check_any(found, captions)
    return found


def _of_split(records: Iterable[Record], split: str) -> tuple[Record, ...]:
    records = tuple(records)
    if any(record.split for record in records):
        return tuple(record for record in records if record.split == split)
    return records


def read_lines(captions: Path, images: Path, *, need_masks: bool = True, need_text: bool = True) -> Iterator[Line]:
    """The lines of a caption file (see `read_dataset`), each checked by itself; its image need not be there.

    `need_masks` refuses a mask that is not there; else such a record has none. `need_text` refuses a line without a caption.
    """
    roots = images.resolve(), captions.resolve().parent
    for number, row in sheet_rows(captions, need_text=need_text):
        where = f"{str(captions)!r}, line {number}"
        yield Line(number, where, _record(row, roots, where, need_masks, need_text))


def _distinct_lines(captions: Path, images: Path, *, need_masks: bool = True) -> Iterator[Line]:
    """`read_lines`; an image in two of them is refused."""
    first_line: dict[str, int] = {}  # by path; a Path takes much more memory than its text
    for line in read_lines(captions, images, need_masks=need_masks):
        path = str(line.record.path)
        if path in first_line:
            raise DatasetError(f"{line.where}: {line.record.file_name!r} is also in line {first_line[path]}: keep one of the two")
        first_line[path] = line.number
        yield line


def _read_captions(images: Path, captions: Path, allow_missing: bool) -> Dataset:
    records: list[Record] = []
    missing: list[str] = []
    for line, where, record in _distinct_lines(captions, images):
        if record.path.is_file():
            records.append(record)
        elif allow_missing:
            missing.append(f"{record.file_name!r} (line {line}) does not exist")
        else:
            raise DatasetError(
                f"{where}: {record.file_name!r} does not exist in {str(images)!r} nor beside the caption file: "
                "correct the name, or leave it out with --allow-missing"
            )
    uncaptioned = _uncaptioned(images, records)
    if uncaptioned and not allow_missing:
        raise DatasetError(
            f"{str(captions)!r}: no line for {uncaptioned[0]!r} in {str(images)!r} ({counted(len(uncaptioned), 'such image')}): "
            "add a caption for each, or leave them out with --allow-missing"
        )
    missing += [f"{name!r} has no caption" for name in uncaptioned]
    return Dataset(tuple(records), tuple(missing))


def _uncaptioned(images: Path, records: list[Record]) -> list[str]:
    """Images in the folder that no record names, where the records speak of this folder at all."""
    root = images.resolve()
    if not any(record.path.is_relative_to(root) for record in records):
        return []
    named = {record.path for record in records} | {record.mask for record in records}
    return [name for name in _names_in(images) if resolved(images / name) not in named]


def _names_in(images: Path) -> list[str]:
    """Images below a folder, relative to it, in natural order, without those in a folder of masks."""
    found = find_images([str(images)])
    for folder in filter(os.path.isdir, found):
        try:
            listed(folder)
        except ImageError as error:
            raise DatasetError(f"{error}: change its permissions, or move it away") from error
    names = [Path(path).relative_to(images) for path in found]
    return [name.as_posix() for name in names if _MASK_FOLDERS.isdisjoint(name.parts[:-1])]


def _record(row: dict[str, str], roots: tuple[Path, Path], where: str, need_mask: bool, need_text: bool) -> Record:
    """Check one row; `where` begins its messages."""
    text, split, label = row["text"].strip(), row["split"].strip(), row["label"].strip()
    if not row["file_name"]:
        raise DatasetError(f"{where}: the file name is empty: name an image")
    if not text and need_text:
        raise DatasetError(f"{where}: the text of {row['file_name']!r} is empty: describe what the image shows")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DatasetError(f"{where}: the text {text!r} is no Unicode: half a character, as \\ud800 is, needs its other half")
    if split not in ("", "train", "test"):
        raise DatasetError(f"{where}: split is {split!r}: expected 'train', 'test' or nothing")
    if label and not re.fullmatch(r"\d{1,9}(\.0+)?", label, flags=re.ASCII):
        raise DatasetError(f"{where}: label is {label!r}: expected 0 (normal), 1 (anomalous), a level of severity above, or nothing")
    mask = _resolve(row["mask"], roots, where) if row["mask"] else None
    if mask is not None and not mask.is_file():
        if need_mask:
            raise DatasetError(f"{where}: the mask {row['mask']!r} does not exist: correct the name or leave it empty")
        mask = None
    return Record(
        file_name=row["file_name"],
        path=_resolve(row["file_name"], roots, where),
        text=text,
        split=split,
        label=int(label.partition(".")[0]) if label else None,
        defect=row["defect"].strip(),
        mask=mask,
    )


def _resolve(name: str, roots: tuple[Path, Path], where: str) -> Path:
    """The first existing file of that name below a root, else where it should be below the first root."""
    try:
        paths = [(root / name).resolve() for root in roots]
        inside = [path for path, root in zip(paths, roots) if path.is_relative_to(root)]
        existing = [path for path in inside if path.is_file()]
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise DatasetError(f"{where}: {name!r} is no usable file name: correct it") from error
    if not existing and len(inside) < len(roots):
        raise DatasetError(
            f"{where}: {name!r} lies outside {str(roots[0])!r}{_led_by(roots, name)}: use a path below it, or give a folder above as --images"
        )
    return (existing or inside)[0]


def _led_by(roots: Sequence[Path], name: str) -> str:
    """That a link leads out, where the path itself does not."""
    within = any(Path(os.path.normpath(root / name)).is_relative_to(root) for root in roots)
    return " (a link leads there)" if within else ""


def _read_folder(images: Path, caption: str | None, allow_missing: bool) -> Dataset:
    root = images.resolve()
    mvtec = any((images / split / "good").is_dir() for split in ("train", "test"))
    names = [name for name in _names_in(images) if not mvtec or name.startswith(("train/", "test/"))]
    sidecars = {name: (images / name).with_suffix(".txt") for name in names}
    if caption is None and any(map(os.path.isfile, sidecars.values())):
        texts = {name: _read_sidecar(sidecar) for name, sidecar in sidecars.items()}
    elif caption is None and names and not mvtec:
        raise DatasetError(
            f"{str(images)!r}: the images have no captions: give a caption file (--captions, for cmg eval --labels), one caption for all "
            "(--caption), or NAME.txt beside each NAME.png"
        )
    else:
        words = caption or root.name.replace("_", " ").replace("-", " ")
        texts = dict.fromkeys(names, words.strip())
    without = [name for name in names if texts[name] is None]
    if without and not allow_missing:
        raise DatasetError(
            f"{str(sidecars[without[0]])!r} does not exist ({counted(len(without), 'image')} without caption): "
            "write a caption for each, or leave them out with --allow-missing"
        )
    records = (_folder_record(root, name, texts[name], mvtec) for name in names if texts[name] is not None)
    return Dataset(tuple(records), tuple(f"{name!r} has no caption" for name in without))


def _read_sidecar(path: Path) -> str | None:
    """The text of a caption beside an image, None where there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{str(path)!r}, line 1: the text is not UTF-8: save the file as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}: mend or remove it") from error
    if not text:
        raise DatasetError(f"{str(path)!r}, line 1: the text is empty: describe what the image shows")
    return " ".join(text.split())


def _folder_record(root: Path, name: str, text: str, mvtec: bool) -> Record:
    path = root / name
    if not mvtec:
        return Record(name, resolved(path), text)
    split, kind, *below = Path(name).parts
    if not below:  # in no folder that names its defect
        return Record(name, resolved(path), text, split)
    masks = root / "ground_truth" / kind  # of the test images: a training image of the same name is another
    mask = next(filter(os.path.isfile, (masks / f"{path.stem}_mask.png", masks / f"{path.stem}.png")), None) if split == "test" else None
    return Record(
        file_name=name,
        path=resolved(path),
        text=text,
        split=split,
        label=int(kind != "good"),
        defect="" if kind == "good" else kind,
        mask=None if mask is None else resolved(mask),
    )
