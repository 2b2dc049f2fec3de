"""Surfaces and parts made of photographs of real materials, as an inspection camera might see them.

The photographs are trained on and never shipped. They are taken to be seamless, so a surface may start anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cmgcli.surfaces import scatter

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


def part(front: np.ndarray, back: np.ndarray, rng: np.random.Generator, size: int, others: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray, str]:
    """A part of one material on another, with its shadow: image (size, size, 3) uint8, the part's mask (size, size) bool, and its shape in a word.

    others: photographs (H, W, 3) uint8 of what reaches into the picture from its border, one neighbour each; with them comes clutter.
    """
    picture = surface(back, rng, size)
    if others:
        scatter(picture, rng, int(rng.choice((0, 2, 5, 10))))
    light = rng.uniform(0, 2 * np.pi)
    for photo in others:
        angle, far = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.5, 0.75)
        away = np.float32([[1, 0, far * np.cos(angle)], [0, 1, far * np.sin(angle)]])
        mask = cv2.warpAffine(_outline(rng, size)[0], away, (size, size))
        picture = _laid(picture, surface(photo, rng, size), mask, light, rng)
    mask, word = _outline(rng, size)
    return _laid(picture, surface(front, rng, size), mask, light, rng), mask > 0, word


def _laid(picture: np.ndarray, skin: np.ndarray, mask: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """The picture with a piece of that skin on it, all (S, S, 3) uint8, where the mask (S, S) uint8 is 1, and its shadow away from the light, an angle in radians."""
    size, soft, reach = len(mask), mask.astype(np.float32), rng.uniform(2, 5)
    alpha = cv2.GaussianBlur(soft, (0, 0), 0.7)[..., None]
    shift = np.float32([[1, 0, -reach * np.cos(light)], [0, 1, -reach * np.sin(light)]])
    shadow = 1 - rng.uniform(0.2, 0.6) * cv2.GaussianBlur(cv2.warpAffine(soft, shift, (size, size)), (0, 0), rng.uniform(1.5, 4.5))[..., None]
    return np.clip(skin * alpha + picture * shadow * (1 - alpha), 0, 255).astype(np.uint8)


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


def _outline(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """The shape of a part (size, size) uint8 of 0 and 1, and its name: a disc, a turned plate or a ragged piece, now and then with a hole."""
    mask = np.zeros((size, size), np.uint8)
    radius = size * float(np.exp(rng.uniform(np.log(0.15), np.log(0.5))))
    centre = tuple(int(v) for v in rng.integers(size // 3, 2 * size // 3, 2)) if radius > 0.3 * size else tuple(int(v) for v in rng.uniform(radius, size - radius, 2))
    word = ("disc", "plate", "piece")[rng.integers(3)]
    if word == "disc":
        cv2.circle(mask, centre, round(radius), 1, -1)
    elif word == "plate":
        sides = tuple(float(radius * rng.uniform(0.8, 2)) for _ in range(2))
        cv2.fillPoly(mask, [cv2.boxPoints((tuple(map(float, centre)), sides, float(rng.uniform(0, 90)))).astype(np.int32)], 1)
    else:
        angles, reach = np.sort(rng.uniform(0, 2 * np.pi, 7)), radius * rng.uniform(0.7, 1.2, 7)
        corners = np.stack([centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    if rng.random() < 0.3:
        cv2.circle(mask, centre, max(3, round(radius * rng.uniform(0.25, 0.6))), 0, -1)
        word = "ring" if word == "disc" else word
    return mask, word
