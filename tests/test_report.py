import io

from cmgcli import report


def test_metrics_table():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=60)
    console.print(report.metrics_table({"AUROC [image]": 0.98765, "images": 12, "AUPRO": float("nan")}, title="line"))
    shown = console.file.getvalue()
    assert "AUROC [image]" in shown and "0.9877" in shown and "12" in shown and "nan" not in shown
