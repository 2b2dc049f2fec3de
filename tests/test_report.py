import io

import numpy as np
import pytest

from cmgcli import report
from cmgcli.errors import DatasetError, OutputError
from cmgcli.report import Row

NASTY = ['a,b.png', 'say "hi".png', "two\nlines.png", "re\rturn.png", "caf\udce9.png", "grün.png", "=1+1", ""]


def test_columns_are_the_contract():
    assert report.COLUMNS == (
        "file", "score", "anomalous", "p_value", "image_score", "patch_score", "head_score", "match", "kept", "caption",
        "error",
    )  # fmt: skip


def test_rows_are_written_as_they_come():
    stream = io.StringIO()
    write = report.row_writer(stream)
    assert stream.getvalue() == ",".join(report.COLUMNS) + "\n"
    write(Row("a.png", score=1 / 3, anomalous=True, p_value=np.float32(0.25), match=1e-9, caption="nut, M6"))
    write(Row("b.png", error="empty"))
    assert stream.getvalue().splitlines()[1:] == ['a.png,0.333333,1,0.25,,,,1e-09,,"nut, M6",', "b.png,,,,,,,,,,empty"]


def test_nasty_names_come_back_byte_for_byte(tmp_path):
    rows = tuple(Row(name, score=-1e300, anomalous=0, caption=name, error=name) for name in NASTY)
    with open(tmp_path / "s.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        write = report.row_writer(stream)
        for row in rows:
            write(row)
    assert report.read_scores(tmp_path / "s.csv") == rows
    assert b"caf\xe9.png" in (tmp_path / "s.csv").read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_stream_that_cannot_encode_a_name_does_not_crash(encoding):
    data = io.BytesIO()
    write = report.row_writer(io.TextIOWrapper(data, encoding=encoding, newline=""))
    for name in NASTY:
        write(Row(name))
    assert b"caf\\udce9.png" in data.getvalue()


def test_a_file_can_be_continued(tmp_path):
    for header in (True, False):
        with open(tmp_path / "s.csv", "a", newline="") as stream:
            report.row_writer(stream, header=header)(Row("a.png", score=2.0))
    assert report.read_scores(tmp_path / "s.csv") == (Row("a.png", score=2.0),) * 2


def test_a_full_disk_is_ours_and_a_closed_pipe_is_not():
    class Stream(io.StringIO):
        error = OSError(28, "No space left on device")

        def flush(self):
            raise self.error

    with pytest.raises(OutputError, match="No space left"):
        report.row_writer(Stream())
    Stream.error = BrokenPipeError()
    with pytest.raises(BrokenPipeError):
        report.row_writer(Stream())


HEADER = ",".join(report.COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the columns are missing, expected file, score"),
        ("file,score\na,1\n", 1, "the columns are file, score, expected"),
        (HEADER + "a.png,1\n", 2, "expected 11 cells, got 2: remove the line"),
        (HEADER + "a.png,x,,,,,,,,,\n", 2, "expected score to be a number, got 'x'"),
        (HEADER + '"a\nb",1,,,,,,,,,\na.png,1,2,,,,,,,,\n', 4, "expected anomalous to be 0 or 1, got '2'"),
        (HEADER + 'a.png,1,,,,,,,,,"tor', 2, "unexpected end of data"),
    ],
)
def test_bad_scores_name_line_and_remedy(tmp_path, text, line, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DatasetError) as caught:
        report.read_scores(tmp_path / "s.csv")
    said = str(caught.value)
    assert f"s.csv', line {line}: " in said and message in said and "\n" not in said


def test_missing_scores_file(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        report.read_scores(tmp_path / "none.csv")


def test_heat_has_one_scale():
    values = np.array([[-5.0, 0.0, 5.0, 10.0, 99.0, np.nan, np.inf]])
    colours = report.heat(values, low=0, high=10)
    assert colours.shape == (1, 7, 3) and colours.dtype == np.uint8
    brightness = colours[0].sum(axis=1).tolist()
    assert brightness[0] == brightness[1] == brightness[5] < brightness[2] < brightness[3] == brightness[4]
    assert brightness[6] == brightness[4]
    assert colours[0, 2, 0] > colours[0, 2, 2]  # RGB: the middle is reddish
    np.testing.assert_array_equal(report.heat(values[:, 1:3], low=0, high=10), colours[:, 1:3])
    assert report.heat(np.ones((2, 2)), low=1, high=1).max() < 10  # a flat scale does not divide by zero


def test_keep_overlay_shows_the_kept_part_as_it_is():
    image = np.full((40, 60, 3), (200, 40, 40), np.uint8)
    before = image.copy()
    keep = np.zeros((4, 6), bool)
    keep[1:3, 1:4] = True
    picture = report.keep_overlay(image, keep)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (picture[15:25, 15:35] == (200, 40, 40)).all()
    hidden = picture[35, 50].astype(int)
    assert hidden.max() < 60 and np.ptp(hidden) < 20
    assert (picture[10, 20] == report._OUTLINE).all()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(report.keep_overlay(image, np.kron(keep, np.ones((10, 10), bool))), picture)


def test_map_overlay_is_clear_where_calm_and_warm_above_the_threshold():
    image = np.full((50, 50, 3), 120, np.uint8)
    levels = np.repeat([[0.0, 1.0, 1.9, 2.5, 9.0]], 50, axis=0).repeat(10, axis=1)
    picture = report.map_overlay(image, levels, low=1, high=2).astype(int)
    assert (picture[:, :20] == 120).all()
    yellow, red = picture[25, 25], picture[25, 45]
    assert yellow[0] > 140 and yellow[1] > 140 and yellow[2] < 120
    assert red[0] > 170 and red[1] < 60 and red[2] < 60
    assert (picture[25, 30] == report._ALARM).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 3)])
def test_pictures_of_any_size(shape):
    image = np.zeros((*shape, 3), np.uint8)
    assert report.keep_overlay(image, np.ones((2, 2), bool)).shape == image.shape
    assert report.map_overlay(image, np.full((3, 3), np.nan), low=0, high=1).tolist() == image.tolist()


def test_metrics_table():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=60)
    console.print(report.metrics_table({"AUROC [image]": 0.98765, "images": 12, "AUPRO": float("nan")}, title="line"))
    shown = console.file.getvalue()
    assert "AUROC [image]" in shown and "0.9877" in shown and "12" in shown and "nan" not in shown
