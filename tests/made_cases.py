"""Labelled cases with made-up scores, for the tests of what is computed and shown from them."""

from pathlib import Path

import numpy as np

from cmgcli.dataset import Record
from cmgcli.exhibits import Worst, exhibit
from cmgcli.figures import evaluation_of
from cmgcli.report import Case, Evaluation
from cmgcli.rows import Row

NASTY = '<script>alert("caption")</script> & \'quoted\''
NASTY_FILE = 'a"><img src=x onerror=alert(1)>\udce9\x07.png'


def made_case(number: int, bad: bool, score: float, *, threshold: float = 1.0) -> Case:
    name = NASTY_FILE if number == 0 else f"images/{number:03d}.png"
    text = NASTY if number % 2 else "a photo of a brass gear"
    record = Record(name, Path("/line") / f"{number:03d}.png", text, "test", int(bad), "scratch" if bad and number % 3 else "stain" if bad else "")
    return Case(record, Row(name, score=score, anomalous=int(score > threshold), p_value=0.5, image_score=score, caption=text))


def made_cases(count: int = 40, *, seed: int = 0) -> list[Case]:
    """Half of them bad; the bad ones score higher by one on average, but for the first, which is the worst miss."""
    rng = np.random.default_rng(seed)
    scores = [-5.0, *(rng.normal(number % 2 == 0, 1) for number in range(1, count))]
    return [made_case(number, number % 2 == 0, float(score)) for number, score in enumerate(scores)]


def made_evaluation(count: int = 40, *, exhibits: int = 6, threshold: float | None = 1.0, promised: float | None = 0.05) -> Evaluation:
    """An evaluation with one unreadable image and with pictures of noise."""
    cases = made_cases(count)
    worst = Worst(exhibits)
    rng = np.random.default_rng(1)
    for case in cases:
        image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        worst.offer(case, lambda case=case, image=image: exhibit(case, image, image[..., 0] / 255))
    broken = Case(Record("broken.png", Path("/line/broken.png"), "a gear", "test", 1), Row("broken.png", error="'<b>broken.png</b>': truncated"))
    return evaluation_of([*cases, broken], worst, threshold=threshold, promised=promised, calibrated=99, method="split")
