import io
import json
import math
from dataclasses import replace

from made_cases import made_evaluation
from rich.console import Console

from cmgcli import report


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_metrics_table():
    text = shown(report.metrics_table({"AUROC [image]": 0.98765, "images": 12, "AUPRO": float("nan")}, title="line"))
    assert "AUROC [image]" in text and "0.9877" in text and "12" in text and "nan" not in text


def test_evaluation_table_shows_intervals():
    result = made_evaluation()
    low, high = result.image_auroc_interval
    text = shown(report.evaluation_table(result))
    assert f"{result.image_auroc:.4f} [{low:.4f}, {high:.4f}]" in text
    assert "AUPRO" not in text
    assert "AUPRO" in shown(report.evaluation_table(replace(result, pixel_auroc=0.5, aupro=0.25)))
    assert "-" in shown(report.evaluation_table(replace(result, threshold=None)))


def test_group_tables_show_each_group_where_there_are_several():
    result = made_evaluation()
    defects, captions = map(shown, report.group_tables(result))
    rate = result.by_defect["stain"].miss_rate
    assert f"{rate.count} of {rate.total}" in defects and "scratch" in defects
    assert "a photo of a brass gear" in captions and "<script>" in captions
    many = {str(i): result.by_defect["stain"] for i in range(41)}
    assert not list(report.group_tables(replace(result, by_defect={}, by_caption=many)))


def test_as_dict_is_plain_and_valid_json():
    result = made_evaluation(threshold=math.inf)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["threshold"] is None and plain["unreadable"] == ["broken.png"]
    assert plain["images"] == 40 and plain["false_alarm_rate"]["total"] == 20
    assert plain["by_caption"]["a photo of a brass gear"]["false_alarm_rate"] is None  # that caption has no good image
    assert plain["auroc_by_defect"].keys() == plain["miss_rate_by_defect"].keys() == {"scratch", "stain"}
    assert not {"cases", "worst_misses", "worst_false_alarms"} & set(plain)


def test_gates_say_what_failed():
    result = made_evaluation()
    assert report.gates(result) == ()
    gates = report.gates(result, min_auroc=result.image_auroc, max_false_alarm=1, max_miss=0)
    assert [gate.passed for gate in gates] == [True, True, False]
    assert gates[2].failure == f"miss rate {result.miss_rate.value:.4f} is above 0"
    (gate,) = report.gates(result, min_auroc=0.999)
    assert gate.failure == f"image AUROC {result.image_auroc:.4f} is below 0.999"


def test_a_gain_over_nothing_is_none():
    result = made_evaluation()
    none = replace(result, image_auroc=0.0)
    assert report.gain(replace(result, image_auroc=0.75), replace(result, image_auroc=0.5)) == "+50.00%" and report.gain(result, none) == ""
    assert "0.0000 (-)" in [str(cell) for cell in report.ablation_table({"baseline": none}, 0.1).columns[1].cells]
