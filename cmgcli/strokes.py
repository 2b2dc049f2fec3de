"""Lines drawn on an image: where they head, how they wander on their way, and how they are painted.

A tool, a roll or a crack follows the grain more often than chance would have it, and there a line is hardest to see: what lies
along it looks alike.
"""

import cv2
import numpy as np

ALONG = 0.4  # of the lines
ASIDE = 0.06  # radians from the grain, standard deviation


def grain_of(image: np.ndarray) -> float:
    """The direction of the grain of an image (H, W, 3), radians from x to y: along it brightness changes least."""
    gray = image.mean(axis=2, dtype=np.float32)
    gray = gray[:: max(1, gray.shape[0] // 128), :: max(1, gray.shape[1] // 128)]
    slope_y, slope_x = cv2.Sobel(gray, cv2.CV_32F, 0, 1), cv2.Sobel(gray, cv2.CV_32F, 1, 0)
    return 0.5 * float(np.arctan2(2 * (slope_x * slope_y).sum(), (slope_x**2 - slope_y**2).sum())) + np.pi / 2


def course(image: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Where a line on an image (H, W, 3) heads, radians from x to y, and how much it wanders: anywhere, or, more straightly, along the grain."""
    if rng.random() < ALONG:
        return grain_of(image) + rng.normal(0, ASIDE) + np.pi * rng.integers(2), rng.uniform(0.1, 0.5)
    return rng.uniform(0, 2 * np.pi), 1.0


def walk(rng: np.random.Generator, start: np.ndarray, length: float, *, step: float, jitter: float, drift: float, heading: float | None = None) -> np.ndarray:
    """A random walk (N, 2) of x, y from a heading, or any: direction jitters at each step and bends steadily by `drift` radians in all."""
    count = int(np.clip(length / step, 2, 120))
    angles = (rng.uniform(0, 2 * np.pi) if heading is None else heading) + np.cumsum(rng.normal(drift / count, jitter, count))
    steps = (length / count) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def headed_walk(rng: np.random.Generator, start: np.ndarray, length: float, heading: float | None = None, wander: float = 1.0) -> np.ndarray:
    """A random walk (N, 2) of x, y in steps of 3 pixels that turns at random and is drawn back to its heading, or any, more or less."""
    count = int(np.clip(length / 3, 2, 240))
    turns, back, angle, angles = rng.normal(0, rng.uniform(0.1, 0.45), count), rng.uniform(0.02, 0.3), 0.0, []
    for turn in turns.tolist():
        angle += turn - back * angle
        angles.append(angle)
    angles = (rng.uniform(0, 2 * np.pi) if heading is None else heading) + wander * (np.array(angles) + np.linspace(0, rng.normal(0, 0.3), count))
    return np.concatenate([start[None], start + np.cumsum(length / count * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)])


def strokes(shape: tuple[int, int], lines: list[np.ndarray], widths: list[int]) -> tuple[int, int, np.ndarray]:
    """Antialiased polylines of (N, 2) x, y points in image coordinates as (top, left, alpha (h, w))."""
    points = np.concatenate(lines)
    height, width = shape
    pad = max(widths) + 1
    left, top = np.clip(np.floor(points.min(axis=0)) - pad, 0, (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + pad, (left + 1, top + 1), (width, height)).astype(int).tolist()
    canvas = np.zeros((bottom - top, right - left), dtype=np.uint8)
    for line, thickness in zip(lines, widths, strict=True):
        fixed = np.round((line - (left, top)) * 16).astype(np.int32)
        cv2.polylines(canvas, [fixed], False, 255, thickness, cv2.LINE_AA, shift=4)
    return top, left, canvas.astype(np.float32) / 255
