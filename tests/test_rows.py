import io
import json
import os

import numpy as np
import pytest

from cmgcli import rows
from cmgcli.errors import DatasetError, OutputError, SettingsError
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


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system has no /dev/fd")
def test_scores_come_through_a_pipe_too():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        rows.row_writer(stream)(Row("a.png", score=1.5, anomalous=0))
    assert rows.read_scores(f"/dev/fd/{reader}") == (Row("a.png", score=1.5, anomalous=0),)
    os.close(reader)


def test_missing_scores_file(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        rows.read_scores(tmp_path / "none.csv")


def write_jsonl(path, written):
    with open(path, "w", encoding="ascii", newline="") as stream:
        write = rows.row_writer(stream, jsonl=True)
        for row in written:
            write(row)


def test_json_lines_have_the_same_digits_and_null_for_nothing(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [Row("a.png", score=1 / 3, anomalous=True, p_value=np.float32(0.25), match=1e-9, caption="grün"), Row("b")])
    first, second = (tmp_path / "s.jsonl").read_text().splitlines()
    values = json.loads(first)
    assert tuple(values) == rows.COLUMNS
    assert '"score": 0.333333, "anomalous": 1, "p_value": 0.25, "image_score": null' in first
    assert values["match"] == 1e-9 and values["caption"] == "grün" and values["error"] is None
    assert json.loads(second) == dict.fromkeys(rows.COLUMNS) | {"file": "b"}


def test_nasty_names_come_back_from_json_lines(tmp_path):
    written = tuple(Row(name, score=-1e300, anomalous=0, caption=name, error=name) for name in NASTY)
    write_jsonl(tmp_path / "s.jsonl", written)
    assert rows.read_scores(tmp_path / "s.jsonl") == written
    assert len((tmp_path / "s.jsonl").read_bytes().splitlines()) == len(NASTY)
    line = (tmp_path / "s.jsonl").read_text().splitlines()[NASTY.index("caf\udce9.png")]
    assert os.fsencode(json.loads(line)["file"]) == b"caf\xe9.png"


def test_what_is_no_number_is_null_in_json_lines(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [Row("a", score=float("nan"), match=float("-inf"))])
    assert rows.read_scores(tmp_path / "s.jsonl") == (Row("a"),)


GOOD_LINE = json.dumps(dict.fromkeys(rows.COLUMNS) | {"file": "a"})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"file": "a"}\n', 1, "expected an object with file, score"),
        (f"{GOOD_LINE}\n[1]\n", 2, "got list: remove the line"),
        (f"{GOOD_LINE}\n{GOOD_LINE[:20]}", 2, "remove the line"),
        (GOOD_LINE.replace('"score": null', '"score": "x"'), 1, "expected score to be a number or null, got 'x'"),
        (GOOD_LINE.replace('"score": null', '"score": NaN'), 1, "expected score to be a number or null, got nan"),
        (GOOD_LINE.replace('"score": null', '"score": true'), 1, "expected score to be a number or null, got True"),
        (GOOD_LINE.replace('"anomalous": null', '"anomalous": 2'), 1, "expected anomalous to be 0, 1 or null, got 2"),
        (GOOD_LINE.replace('"file": "a"', '"file": null'), 1, "expected file to be text, got None"),
        (GOOD_LINE.replace('"caption": null', '"caption": 3'), 1, "expected caption to be text or null, got 3"),
    ],
)
def test_bad_json_lines_name_line_and_remedy(tmp_path, text, line, message):
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(DatasetError) as caught:
        rows.read_scores(tmp_path / "s.jsonl")
    said = str(caught.value)
    assert f"s.jsonl', line {line}: " in said and message in said and "\n" not in said


@pytest.mark.parametrize("jsonl", [False, True])
def test_resume_cuts_a_torn_row_wherever_it_is_torn(tmp_path, jsonl):
    written = tuple(Row(name, score=0.5, caption=name) for name in NASTY)
    path = tmp_path / "scores"
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        write = rows.row_writer(stream, jsonl=jsonl)
        ends = [stream.tell()]
        for row in written:
            write(row)
            ends.append(stream.tell())
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert rows.resume_scores(path, jsonl=jsonl) == written[: max(sum(end <= cut for end in ends) - 1, 0)]
        assert path.read_bytes() == whole[:cut], "it is cut when rows are to follow"
        rows.cut_torn_row(path, jsonl=jsonl)
        assert path.read_bytes() == whole[: max((end for end in ends if end <= cut), default=0)]
    assert rows.resume_scores(tmp_path / "none", jsonl=jsonl) == ()


@pytest.mark.parametrize(("content", "jsonl"), [("KEY=secret", False), ("KEY=secret", True), ('{"a": 1}', True), ('a,b\n1,2\n3,"4', False), ("file,score\n", False)])
def test_resume_refuses_another_file_and_leaves_it_as_it_is(tmp_path, content, jsonl):
    (tmp_path / "s").write_text(content)
    with pytest.raises(DatasetError):
        rows.resume_scores(tmp_path / "s", jsonl=jsonl)
    assert (tmp_path / "s").read_text() == content


def test_resume_refuses_the_other_format(tmp_path):
    (tmp_path / "s").write_text(f"{GOOD_LINE}\n")
    with pytest.raises(DatasetError, match="is no CSV file"):
        rows.resume_scores(tmp_path / "s")
    (tmp_path / "s").write_text(HEADER)
    with pytest.raises(DatasetError, match="is no JSON Lines file"):
        rows.resume_scores(tmp_path / "s", jsonl=True)


def test_rest_of_goes_on_after_the_rows():
    done = (Row("a"), Row("b"))
    assert list(rows.rest_of(["a", "b", "c"], done)) == ["c"]
    with pytest.raises(SettingsError, match="expected the row of c, the file has b"):
        rows.rest_of(["a", "c"], done)
    with pytest.raises(SettingsError, match="no further input"):
        rows.rest_of(["a"], done)
