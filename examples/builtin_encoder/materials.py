"""Surfaces and parts made of photographs of real materials, as an inspection camera might see them.

The photographs are trained on and never shipped. They are taken to be seamless, so a surface may start anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def surface(photo: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A square of a flawless material: zoomed, stretched, grey half of the time, ground, lit unevenly, blurred, noisy, turned.

    photo: (H, W, 3) uint8. Returns (size, size, 3) uint8.
    """
    image = _zoomed(photo, rng, size)
    if rng.random() < 0.5:
        image = np.repeat((image @ LUMA)[..., None], 3, axis=2)
    if rng.random() < 0.35:
        image = image * np.float32(rng.uniform(0.2, 1)) + _streaks(rng, size)[..., None]
    if rng.random() < 0.5:
        image = image * _light(rng, size)[..., None]
    image = (image - image.mean()) * np.float32(rng.uniform(0.3, 1.3)) + np.float32(rng.uniform(50, 200))
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.4)))
    image = image + np.float32(rng.uniform(0, 5)) * rng.standard_normal((size, size, 1), dtype=np.float32)
    return np.ascontiguousarray(np.rot90(np.clip(image, 0, 255).astype(np.uint8), int(rng.integers(4))))


def part(photos: Sequence[np.ndarray], rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A part of one material on another, with its shadow: image (size, size, 3) uint8 and the part's mask (size, size) bool."""
    front, back = (surface(photos[int(rng.integers(len(photos)))], rng, size).astype(np.float32) for _ in range(2))
    mask = _outline(rng, size)
    soft = mask.astype(np.float32)
    alpha = cv2.GaussianBlur(soft, (0, 0), 0.7)[..., None]
    shadow = 1 - 0.4 * np.roll(cv2.GaussianBlur(soft, (0, 0), 4), (3, 3), (0, 1))[..., None] * (1 - alpha)
    return np.clip(front * alpha + back * shadow * (1 - alpha), 0, 255).astype(np.uint8), mask.astype(bool)


def _zoomed(photo: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float32 from a random place of the photograph, zoomed by 0.7 to 2.2, now and then stretched along one side."""
    height, width = photo.shape[:2]
    zoom = float(np.exp(rng.uniform(np.log(0.7), np.log(2.2))))
    reach = np.arange(int(np.ceil(size / zoom)) + 2)
    piece = photo[np.ix_((int(rng.integers(height)) + reach) % height, (int(rng.integers(width)) + reach) % width)]
    if rng.random() < 0.3:
        short = max(8, int(len(reach) / rng.uniform(1, 2.5)))
        piece = piece[:, :short] if rng.random() < 0.5 else piece[:short]
    how = cv2.INTER_LINEAR if zoom > 1 else cv2.INTER_AREA
    return cv2.resize(np.ascontiguousarray(piece), (size, size), interpolation=how).astype(np.float32)


def _streaks(rng: np.random.Generator, size: int) -> np.ndarray:
    """The marks of grinding (size, size) float32, in grey levels around zero."""
    noise = rng.standard_normal((size, size), dtype=np.float32)
    length = int(rng.integers(9, 80))
    marks = cv2.blur(noise, (length, 1) if rng.random() < 0.5 else (1, length)) * np.sqrt(length)
    return cv2.GaussianBlur(marks, (0, 0), float(rng.uniform(0.4, 1.5))) * np.float32(rng.uniform(3, 18))


def _light(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient of light, now and then with a bright spot: factors (size, size) float32 around 1."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    gain = 1 + rng.uniform(0, 0.9) * (np.cos(angle) * x + np.sin(angle) * y)
    if rng.random() < 0.4:
        gain = gain * np.exp(-rng.uniform(0, 3) * ((x - rng.uniform(-0.3, 0.3)) ** 2 + (y - rng.uniform(-0.3, 0.3)) ** 2))
    return gain.astype(np.float32)


def _outline(rng: np.random.Generator, size: int) -> np.ndarray:
    """The shape of a part (size, size) uint8 of 0 and 1: a disc, a turned plate or a ragged piece, now and then with a hole."""
    mask = np.zeros((size, size), np.uint8)
    centre = tuple(int(v) for v in rng.integers(size // 3, 2 * size // 3, 2))
    radius = int(rng.integers(size // 4, size // 2))
    shape = rng.integers(3)
    if shape == 0:
        cv2.circle(mask, centre, radius, 1, -1)
    elif shape == 1:
        sides = tuple(float(radius * rng.uniform(0.8, 2)) for _ in range(2))
        cv2.fillPoly(mask, [cv2.boxPoints((tuple(map(float, centre)), sides, float(rng.uniform(0, 90)))).astype(np.int32)], 1)
    else:
        angles, reach = np.sort(rng.uniform(0, 2 * np.pi, 7)), radius * rng.uniform(0.7, 1.2, 7)
        corners = np.stack([centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    if rng.random() < 0.4:
        cv2.circle(mask, centre, max(3, radius // 3), 0, -1)
    return mask
