"""The camera of the procedural line: light, lens and sensor."""

import cv2
import numpy as np


def photograph(image: np.ndarray, rng: np.random.Generator, *, harsh: bool = False) -> np.ndarray:
    """Uneven light, a slightly soft lens, sensor noise on a scene (S, S, 3) uint8 RGB; gives the same.

    harsh: light and camera as on a bad day, see `_bad_day`.
    """
    size = len(image)
    slope = rng.normal(0, 0.10, 2).astype(np.float32)
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    light = np.float32(rng.uniform(0.85, 1.12)) + slope[0] * steps[:, None] + slope[1] * steps[None]
    warmth = np.float32([1, 1, 1]) + np.float32([1, 0.2, -1]) * np.float32(rng.normal(0, 0.03))
    if (soft := rng.uniform(0, 0.8) * size / 256) > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), soft)
    picture = image * (light[..., None] * warmth)
    noise = rng.standard_normal((size, size), dtype=np.float32) * np.float32(rng.uniform(0.5, 4))
    if harsh:
        picture = _bad_day(picture, rng)
    return np.clip(picture + noise[..., None] + 0.5, 0, 255).astype(np.uint8)


def _bad_day(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light and camera (S, S, 3) float32 in grey levels as on a bad day.

    Dark or bright exposure and a steep gradient always, each of these now and then: a cast shadow, a specular spot, a soft
    lens, strong noise; a fifth of the cameras see only grey.
    """
    size = len(picture)
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.normal(0, 0.22, 2).astype(np.float32)
    light = 1 + np.clip(slope[0] * steps[:, None] + slope[1] * steps[None], -0.6, 0.6)
    if rng.random() < 0.3:
        light *= _cast_shadow(steps, rng)
    picture = picture * (light * np.float32(np.exp(rng.uniform(np.log(0.4), np.log(1.5)))))[..., None]
    if rng.random() < 0.3:
        picture += _specular_spot(steps, rng)[..., None]
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.6) * size / 256 + 0.2)
    grey = rng.random() < 0.2
    if grey:
        picture = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < 0.4:
        noise = rng.standard_normal((size, size, 1 if grey else 3), dtype=np.float32)
        picture += noise * np.float32(rng.uniform(2, 10))
    return picture


def _cast_shadow(steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light (S, S) float32 under the soft shadow of a rail or of an edge outside the picture."""
    angle, half = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9)
    away = np.abs(steps[:, None] * np.float32(np.sin(angle)) + steps[None] * np.float32(np.cos(angle)) - np.float32(rng.uniform(0.2, 1.2)))
    return 1 - np.float32(rng.uniform(0.25, 0.6)) * np.clip((half - away) / np.float32(rng.uniform(0.03, 0.2)) + 0.5, 0, 1)


def _specular_spot(steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lamp's reflection (S, S) float32 in grey levels."""
    x, y, wide = (np.float32(value) for value in (*rng.uniform(-0.8, 0.8, 2), rng.uniform(0.01, 0.12)))
    spot = np.exp(-np.square(steps - y) / wide)[:, None] * np.exp(-np.square(steps - x) / wide)[None]
    return spot * np.float32(rng.uniform(60, 220))
