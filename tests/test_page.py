"""The report page: what it says, that nothing in it can run or call out, and how a real browser shows it."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from made_cases import made_cases, made_evaluation

from cmgcli import charts, page, report
from cmgcli.errors import OutputError
from cmgcli.exhibits import Worst
from cmgcli.figures import evaluation_of
from cmgcli.page import Page

DATE = datetime(2025, 3, 4, 5, 6, tzinfo=UTC)
NO_CONTENT = {"meta", "link", "br", "img", "input", "hr"}


class Elements(html.parser.HTMLParser):
    """All start tags with their attributes, and the text; fails where a tag is not closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in NO_CONTENT:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, *names):
        return [value for _, given in self.found for name, value in given.items() if name in names]


def made_page() -> Page:
    result = made_evaluation()
    return Page(
        title="Inspection report of <model>.cmg",
        result=result,
        date=DATE,
        gates=report.gates(result, min_auroc=0.5, max_miss=0.01),
        ablation={"baseline": result, "CMG": replace(result, image_auroc=0.9)},
        paper_gain=0.1681,
        facts={"Model": {"sha256": "0" * 64}, "Run": {"command": "cmg eval --model '<b>.cmg'"}},
    )


@pytest.fixture(scope="module")
def content() -> str:
    return page.render(made_page())


def test_the_page_is_well_formed_and_says_everything_once(content):
    elements = Elements(content)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("h1") == tags.count("main") == 1 and tags.count("svg") > 3
    assert ("html", {"lang": "en"}) in elements.found
    for words in ("Verdict", "By kind of defect", "By product", "could not be read", "How to repeat this", "1 of 2 gates failed.", "truncated", "stain"):
        assert words in elements.text
    ids = elements.attributes("id")
    assert len(ids) == len(set(ids))
    assert all(given.get("alt") for tag, given in elements.found if tag == "img")
    assert all(given.get("scope") in ("row", "col") for tag, given in elements.found if tag == "th")


def test_texts_of_users_are_escaped(content):
    elements = Elements(content)
    assert "script" not in {tag for tag, _ in elements.found}
    assert not [name for _, given in elements.found for name in given if name.startswith("on")]
    assert '<script>alert("caption")</script> & \'quoted\'' in elements.text
    assert 'a"><img src=x onerror=alert(1)>\\xe9\\x07.png' in elements.text
    assert any('a"><img src=x onerror=alert(1)>\\xe9' in alt for alt in elements.attributes("alt"))


def test_nothing_comes_from_elsewhere(content):
    elements = Elements(content)
    assert all(value.startswith("data:") for value in elements.attributes("src", "href"))
    assert all(value.startswith("#") for value in elements.attributes("xlink:href"))
    assert not re.search(r"@import|url\((?!#)", content)
    policy = next(given["content"] for tag, given in elements.found if given.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_the_same_evaluation_gives_the_same_page_but_for_its_date(content):
    assert page.render(made_page()) == content
    later = page.render(replace(made_page(), date=DATE.replace(year=2026)))
    assert later != content and later.replace("2026", "2025") == content.replace("2026", "2025")


def test_charts_take_all_colours_from_the_theme():
    for chart in charts.charts(made_evaluation()):
        body = chart.svg[chart.svg.index("</style>") :]
        assert not re.search(r"#[0-9a-f]{6}", body)
        assert set(re.findall(r"var\(--(\w+)\)", body)) <= {*charts._VARIABLES.values(), "sans"}
        assert all("fill: var(" in text for text in re.findall(r"<text[^>]*>", body))
        assert "threshold" in chart.description and "DejaVu" not in body


@pytest.mark.parametrize("scores", [[0.0, 0.0, 1.0], [5.0, 5.0, 5.0], [0.0, 1e300, -1e300], [1e-12, 2e-12, 3e-12]])
def test_any_scores_can_be_drawn(scores):
    cases = [replace(case, row=replace(case.row, score=scores[i % 3], anomalous=0)) for i, case in enumerate(made_cases(12))]
    for threshold in (None, float("inf"), 0.5):
        drawn = charts.charts(evaluation_of(cases, Worst(0), threshold=threshold, promised=None))
        assert all("nan" not in chart.svg for chart in drawn)


def test_the_line_of_a_scores_file_lies_where_its_flags_change():
    cases = made_cases(40)
    passed = max(case.row.score for case in cases if not case.row.anomalous)
    assert charts.alarm_line(cases, None) == passed
    assert charts.alarm_line(cases, 0.25) == 0.25
    assert charts.alarm_line(cases, float("inf")) is None
    swapped = [replace(case, row=replace(case.row, anomalous=1 - case.row.anomalous)) for case in cases]
    assert charts.alarm_line(swapped, None) is None
    assert "rejected above" in charts.charts(made_evaluation(threshold=None))[0].svg


def test_the_verdict_is_one_plain_sentence():
    result = made_evaluation()
    alarm, miss = report.Rate(0.05, 0.0171, 0.137, 3, 60), report.Rate(0.02, 0.0035, 0.105, 1, 50)
    result = replace(result, false_alarm_rate=alarm, miss_rate=miss, promised_false_alarm_rate=0.01, calibration_images=9999)
    assert page.verdict(result).replace("\xa0", " ") == (
        "At the calibrated threshold, 3 of 60 good parts are rejected (5.0 %, 95 % interval 1.7 to 13.7 %; promised: at most 1.0 %) "
        "and 1 of 50 bad parts is missed (2.0 %, 95 % interval 0.4 to 10.5 %)."
    )
    assert "More good parts are rejected than was promised" in page.promise(result)
    assert "agree with the promise, as far as 60" in page.promise(replace(result, promised_false_alarm_rate=0.02))
    assert page.promise(replace(result, promised_false_alarm_rate=None)) == ""
    assert page.verdict(replace(result, threshold=None)).startswith("By the scores file, 3 of 60")
    assert page.verdict(replace(result, threshold=float("inf"))).startswith("No threshold could be calibrated, so nothing is rejected: ")


def test_gates_in_words():
    passed, failed = report.Gate("image AUROC", 0.9, 0.8, True), report.Gate("miss rate", 0.9, 0.8, False)
    assert [page.gate_sentence(gates) for gates in ((), (passed,), (failed,), (passed, passed), (passed, failed))] == [
        "No gate was set.", "The gate passed.", "The gate failed.", "All 2 gates passed.", "1 of 2 gates failed.",
    ]  # fmt: skip


def test_no_pictures_and_no_kinds_of_defects_leave_no_empty_sections():
    result = made_evaluation(exhibits=0)
    cases = tuple(replace(case, record=replace(case.record, defect="")) for case in result.cases if not case.row.error)
    text = Elements(page.render(Page("plain", evaluation_of(cases, Worst(0), threshold=1.0, promised=None), DATE))).text
    for words in ("By kind of defect", "lowest scores", "highest scores", "could not be read", "How to repeat", "Passed", "Variant"):
        assert words not in text


def test_a_great_many_captions_are_cut_and_the_rest_is_counted():
    cases = [replace(case, record=replace(case.record, text=f"part {i // 2}")) for i, case in enumerate(made_cases(140))]
    text = Elements(page.render(Page("many", evaluation_of(cases, Worst(0), threshold=1.0, promised=None), DATE))).text
    assert "10 more are in the JSON file" in text and "part 0" in text


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "r.html"
    page.write_page(made_page(), path)
    page.write_page(made_page(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(OutputError, match="choose another --report"):
        page.write_page(made_page(), tmp_path / "none" / "r.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match="folder.html"):
        page.write_page(made_page(), tmp_path / "folder.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.html", "r.html"]


PROBE = """<!doctype html><body><iframe id="f" width="WIDTH" height="900" src="PAGE"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = () => {
  const frame = document.getElementById("f"), inside = frame.contentDocument, root = inside.documentElement;
  const style = (selector, name) => frame.contentWindow.getComputedStyle(inside.querySelector(selector))[name];
  document.getElementById("out").textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    paper: style("body", "backgroundColor"), ink: style("body", "color"), chart: style(".charts svg text", "fill"),
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    broken: [...inside.images].filter(image => !image.naturalWidth).length, images: inside.images.length,
    flat: [...inside.querySelectorAll(".charts svg")].filter(svg => svg.getBoundingClientRect().height < 100).length,
  });
};
</script></body>"""


def browsers() -> list[str]:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")]
    cached = sorted((Path.home() / ".cache" / "ms-playwright").glob("chromium-*/chrome-linux*/chrome"))
    return [path for path in (*found, *map(str, cached)) if path]


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """A function that shows a page to a headless Chromium and returns what a probe sees in it, and the console's lines."""
    if not browsers():
        pytest.skip("no Chromium: install chromium or google-chrome, or a browser by playwright")
    folder = tmp_path_factory.mktemp("browser")

    def visit(content: str, *, width: int = 1200, dark: bool = False) -> tuple[dict, list[str]]:
        (folder / "page.html").write_text(content, encoding="utf-8")
        (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", "page.html"))
        command = [
            browsers()[0], "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}",
            "--no-first-run", "--disable-background-networking", "--enable-logging=stderr", "--virtual-time-budget=5000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", (folder / "probe.html").as_uri(),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        seen = re.search(r'<pre id="out">(.*?)</pre>', run.stdout, flags=re.DOTALL)
        assert seen and seen.group(1), f"the browser showed nothing: {run.stderr[-1000:]}"
        return json.loads(seen.group(1).replace("&amp;", "&")), [line for line in run.stderr.splitlines() if "CONSOLE" in line]

    return visit


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page_without_errors_requests_or_sideways_scrolling(browse, content, width):
    seen, console = browse(content, width=width)
    assert console == []
    assert (seen["overflow"], seen["loaded"], seen["broken"], seen["flat"]) == (0, [], 0, 0)
    assert seen["images"] == 24


def test_dark_mode_changes_page_and_charts(browse, content):
    light, dark = browse(content)[0], browse(content, dark=True)[0]
    for name in ("paper", "ink", "chart"):
        assert light[name] != dark[name]


def test_the_browser_would_have_told(browse, content):
    """The probe itself: a script and a request are seen, and stopped by the page's own policy."""
    bad = content.replace("</main>", '<script>alert(1)</script><img src="https://example.invalid/a.png" alt="x"><p style="width: 3000px">wide</p></main>')
    seen, console = browse(bad)
    assert seen["overflow"] > 1000 and seen["broken"] == 1
    assert any("script" in line for line in console) and any("example.invalid" in line for line in console)
