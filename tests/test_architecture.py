"""The house: imports point downward only, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import cmgcli

PACKAGE = Path(cmgcli.__file__).parent

# Each module may import the modules of the lines below its own.
FLOORS = (
    {"cli"},
    {"options"},
    {"config", "needs", "usage", "publish", "fitted", "unfitted"},
    {"streams"},
    {"console"},
    {"audit"},
    {"evaluation", "page", "masking", "stressing", "engine_ray"},
    {"pipeline", "charts", "scored", "scoring", "export"},
    {"crossfit", "zeroshot"},
    {"known"},
    {"heldout", "learn", "placard"},
    {"looks", "explain", "naming"},
    {"model", "figures", "contact"},
    {"exhibits", "stress"},
    {"report", "provenance", "checkpoint", "view"},
    {"junit", "step_summary", "states", "reasons"},
    {"verdict"},
    {"rows", "pictures"},
    {"detector", "pretrained_head"},
    {"adapt", "projection", "album"},
    {"bank", "calibrate", "drift", "cmer", "cmle", "encoder", "dataset", "loader", "metrics", "line"},
    {"builtin"},
    {"clip"},
    {"tokens", "convolutional"},
    {"tower"},
    {"snapshot", "head", "images", "changes", "defects", "captions"},
    {"parts", "surfaces", "camera"},
    {"containers", "defect_kinds", "files", "lettering", "sheet", "tiles", "prompts", "products", "ranks"},
    {"jpeg", "shapes", "materials", "strokes", "words", "precision"},
    {"errors"},
)


def imports(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "cmgcli":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmgcli."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cmgcli.")}
    return found


def test_every_module_has_a_floor():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == set().union(*FLOORS)


def test_imports_point_downward():
    for height, floor in enumerate(FLOORS):
        below = set().union(*FLOORS[height + 1 :])
        for module in floor:
            assert imports(module) <= below, f"{module} imports {imports(module) - below}, which is not below it"


def test_only_one_module_imports_open_clip_and_timm():
    users = {path.stem for path in PACKAGE.glob("*.py") if {"open_clip", "timm"} & imports_of_others(path)}
    assert users == {"clip"}


def imports_of_others(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_import_and_help_load_neither_torch_nor_opencv():
    program = (
        "import sys, cmgcli, cmgcli.cli\n"
        "try: cmgcli.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'open_clip', 'sklearn', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "eval" in run.stdout
