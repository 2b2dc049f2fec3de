"""The contact sheet: where each picture lies, how much is shown, one scale for all."""

import tracemalloc

import cv2
import numpy as np
import pytest

from cmgcli import contact
from cmgcli.contact import MOST_CELLS, SIDE, ContactSheet, fit_square, relevance_scale
from cmgcli.errors import OutputError
from cmgcli.images import read_image
from cmgcli.pictures import heat, keep_overlay
from cmgcli.rows import MaskRow


def offer(sheet: ContactSheet, image: np.ndarray, relevance: np.ndarray, *, name: str = "part.png") -> None:
    row = MaskRow(name, match_before=0.1, match_after=-0.001, kept=0.5, caption="a photo of a gear")
    sheet.add(row, image, relevance, np.eye(4, dtype=bool))


def flat(value: int, *, size: tuple[int, int] = (50, 50)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def pictures_of(sheet: np.ndarray, place: int, columns: int) -> list[np.ndarray]:
    left = contact._MARGIN + place % columns * (contact._CELL[0] + contact._MARGIN)
    top = contact._HEADER + place // columns * contact._CELL[1]
    return [sheet[top : top + SIDE, x : x + SIDE] for x in range(left, left + contact._CELL[0], SIDE + contact._GAP)]


def test_a_cell_has_the_image_its_relevance_and_what_is_kept():
    sheet = ContactSheet()
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    relevance = np.linspace(-1, 1, 16).reshape(4, 4)
    offer(sheet, flat(9), np.zeros((4, 4)))
    offer(sheet, image, relevance)
    high = relevance_scale([np.zeros((4, 4)), relevance])
    seen, warm, kept = pictures_of(sheet.draw(), 1, 2)
    np.testing.assert_array_equal(seen, image)
    np.testing.assert_array_equal(warm, heat(cv2.resize(relevance.astype(np.float32), (SIDE, SIDE)), low=0, high=high))
    np.testing.assert_array_equal(kept, keep_overlay(image, np.eye(4, dtype=bool)))


def test_the_same_relevance_has_the_same_colour_beside_any_other():
    sheet = ContactSheet()
    for level in (0.2, 1.0, 0.2):
        offer(sheet, flat(100), np.full((4, 4), level))
    drawn = sheet.draw()
    first, strong, again = (pictures_of(drawn, place, 3)[1] for place in range(3))
    np.testing.assert_array_equal(first, again)
    assert first.mean() < strong.mean()


def test_of_a_long_run_an_even_sample_is_shown_in_order_and_memory_stays():
    sheet = ContactSheet()
    for number in range(MOST_CELLS):
        offer(sheet, flat(1), np.zeros((4, 4)), name=str(number))
    tracemalloc.start()
    for number in range(MOST_CELLS, 4000):
        offer(sheet, flat(1), np.zeros((4, 4)), name=str(number))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sheet.images, sheet.shown) == (4000, MOST_CELLS)
    assert held < 2 * MOST_CELLS * SIDE * SIDE * 3
    numbers = [int(cell.row.file) for cell in sheet._cells.values()]
    assert 1400 < np.mean(numbers) < 2600  # 2000, give or take 4 standard errors
    assert sheet.draw().shape == (contact._HEADER + 15 * contact._CELL[1] + contact._MARGIN, 4 * (contact._CELL[0] + contact._MARGIN) + contact._MARGIN, 3)
    again = ContactSheet()
    for number in range(4000):
        offer(again, flat(1), np.zeros((4, 4)), name=str(number))
    assert list(again._cells) == list(sheet._cells)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3000, 7), (20, 20)])
def test_images_of_any_shape_fit_into_a_cell(size):
    assert max(fit_square(flat(0, size=size), SIDE).shape) == SIDE
    sheet = ContactSheet()
    offer(sheet, flat(0, size=size), np.full((4, 4), -1.0))
    assert sheet.draw().shape[1] == contact._CELL[0] + 2 * contact._MARGIN


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$x^2$.png", "caf\udce9.png", "\u96f6\u4ef6.png", "a\nb.png", "d/" * 300 + "x.png", ""])
def test_any_name_can_stand_on_the_sheet_and_none_on_the_numbers(name, tmp_path):
    sheet, plain = ContactSheet(), ContactSheet()
    offer(sheet, flat(7), np.zeros((4, 4)), name=name)
    offer(plain, flat(7), np.zeros((4, 4)), name="")
    sheet.write(tmp_path / "sheet.png")
    drawn = read_image(tmp_path / "sheet.png")
    numbers = slice(-240, None)
    np.testing.assert_array_equal(drawn[:, numbers], plain.draw()[:, numbers])
    assert (drawn != plain.draw()).any() == bool(name)


def test_a_sheet_that_cannot_be_written_is_named(tmp_path):
    sheet = ContactSheet()
    offer(sheet, flat(7), np.zeros((4, 4)))
    with pytest.raises(OutputError, match="no/sheet.png"):
        sheet.write(tmp_path / "no" / "sheet.png")
