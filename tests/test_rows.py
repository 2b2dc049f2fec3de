import io

import numpy as np
import pytest

from cmgcli import rows
from cmgcli.errors import DatasetError, OutputError
from cmgcli.rows import Row

NASTY = ['a,b.png', 'say "hi".png', "two\nlines.png", "re\rturn.png", "caf\udce9.png", "grün.png", "=1+1", ""]


def test_columns_are_the_contract():
    assert rows.COLUMNS == (
        "file", "score", "anomalous", "p_value", "image_score", "patch_score", "head_score", "match", "kept", "caption",
        "error",
    )  # fmt: skip


def test_rows_are_written_as_they_come():
    stream = io.StringIO()
    write = rows.row_writer(stream)
    assert stream.getvalue() == ",".join(rows.COLUMNS) + "\n"
    write(Row("a.png", score=1 / 3, anomalous=True, p_value=np.float32(0.25), match=1e-9, caption="nut, M6"))
    write(Row("b.png", error="empty"))
    assert stream.getvalue().splitlines()[1:] == ['a.png,0.333333,1,0.25,,,,1e-09,,"nut, M6",', "b.png,,,,,,,,,,empty"]


def test_nasty_names_come_back_byte_for_byte(tmp_path):
    written = tuple(Row(name, score=-1e300, anomalous=0, caption=name, error=name) for name in NASTY)
    with open(tmp_path / "s.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        write = rows.row_writer(stream)
        for row in written:
            write(row)
    assert rows.read_scores(tmp_path / "s.csv") == written
    assert b"caf\xe9.png" in (tmp_path / "s.csv").read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_stream_that_cannot_encode_a_name_does_not_crash(encoding):
    data = io.BytesIO()
    write = rows.row_writer(io.TextIOWrapper(data, encoding=encoding, newline=""))
    for name in NASTY:
        write(Row(name))
    assert b"caf\\udce9.png" in data.getvalue()


def test_a_file_can_be_continued(tmp_path):
    for header in (True, False):
        with open(tmp_path / "s.csv", "a", newline="") as stream:
            rows.row_writer(stream, header=header)(Row("a.png", score=2.0))
    assert rows.read_scores(tmp_path / "s.csv") == (Row("a.png", score=2.0),) * 2


def test_a_full_disk_is_ours_and_a_closed_pipe_is_not():
    class Stream(io.StringIO):
        error = OSError(28, "No space left on device")

        def flush(self):
            raise self.error

    with pytest.raises(OutputError, match="No space left"):
        rows.row_writer(Stream())
    Stream.error = BrokenPipeError()
    with pytest.raises(BrokenPipeError):
        rows.row_writer(Stream())


HEADER = ",".join(rows.COLUMNS) + "\n"


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
        rows.read_scores(tmp_path / "s.csv")
    said = str(caught.value)
    assert f"s.csv', line {line}: " in said and message in said and "\n" not in said


def test_missing_scores_file(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        rows.read_scores(tmp_path / "none.csv")
