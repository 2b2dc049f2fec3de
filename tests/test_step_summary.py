"""The Markdown summary: what it says, and that a name is only a name."""

import pytest

from cmgcli.errors import OutputError
from cmgcli.rows import Row
from cmgcli.step_summary import append_summary, escaped, markdown
from cmgcli.verdict import Tally, Verdict, limits_of


def verdict_of(*rows: Row, max_anomalies: str | None = None) -> Verdict:
    tally = Tally(keep=True)
    for row in rows:
        tally.add(row)
    return tally.verdict(limits_of(max_anomalies=max_anomalies))


def unknown(row: Row) -> str:
    return ""


def test_the_whole_page():
    rows = (
        Row("a.png", score=1.0, anomalous=0, p_value=0.5, caption="a nut"),
        Row("e.png", score=0.5, anomalous=1, p_value=0.5),
        Row("b|c.png", score=12.3456789, anomalous=1, p_value=0.00990099, caption="a `bolt`"),
        Row("d.png", error="empty"),
    )
    assert markdown(verdict_of(*rows, max_anomalies="70%"), why=lambda row: "defect head" if row.score > 1 else "") == (
        "### cmg: 2 of 3 readable images are anomalous, 1 could not be read\n"
        "\n"
        "Gate passed: --max-anomalies 70%\n"
        "\n"
        "| images | readable | anomalous | unreadable |\n"
        "|---:|---:|---:|---:|\n"
        "| 4 | 3 | 2 | 1 |\n"
        "\n"
        "The highest scores:\n"
        "\n"
        "| image | score | p-value | anomalous | caption |\n"
        "|---|---:|---:|---|---|\n"
        "| b\\|c.png | 12.35 | 0.0099 | yes: defect head | a \\`bolt\\` |\n"
        "| a.png | 1 | 0.5 | no | a nut |\n"
        "| e.png | 0.5 | 0.5 | yes |  |\n"
        "\n"
        "Could not be read:\n"
        "\n"
        "- d.png: empty\n"
        "\n"
    )


def test_at_most_ten_of_each():
    rows = [Row(f"{i}.png", score=float(i), anomalous=0, p_value=0.5) for i in range(30)] + [Row(f"x{i}.png", error="empty") for i in range(12)]
    page = markdown(verdict_of(*rows), unknown)
    assert page.count("| no |") == 10 and "| 29.png | 29 |" in page and "| 19.png" not in page
    assert page.count(": empty") == 10 and "- and 2 more" in page


def test_nothing_to_tell():
    assert markdown(verdict_of(), unknown).startswith("### cmg: no image was given\n")
    failed = markdown(verdict_of(Row("a.png", score=1.0, anomalous=1, p_value=0.1), max_anomalies="0"), unknown)
    assert "**Gate failed:** 1 of 1 readable images is anomalous, which --max-anomalies 0 does not allow" in failed


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines\r\t.png", r"two\\nlines\\r\\t.png"),
        ("a|b`c`.png", r"a\|b\`c\`.png"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("a\\b*c_d~e&f$g#h@i", r"a\\b\*c\_d\~e\&f\$g\#h\@i"),
        ("caf\udce9\x00", r"caf\\xe9\\x00"),
        ("grün", "grün"),
    ],
)
def test_a_name_is_shown_as_it_is(name, shown):
    assert escaped(name) == shown


def test_it_is_appended(tmp_path):
    path = tmp_path / "s.md"
    path.write_text("# Job\n")
    append_summary(verdict_of(), path, why=unknown)
    append_summary(verdict_of(Row("caf\udce9", error="e\udce9")), path, why=unknown)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Job\n### cmg: no image") and text.count("### cmg") == 2
    with pytest.raises(OutputError, match="--summary"):
        append_summary(verdict_of(), tmp_path, why=unknown)
