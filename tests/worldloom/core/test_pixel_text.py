"""Letters on pictures."""

import string

import numpy as np

from worldloom.core.pixel_text import GLYPHS, draw_text, text_size


def test_a_letter_has_its_form():
    picture = np.zeros((8, 5, 3), np.uint8)
    draw_text(picture, "E", 0, 0, (1, 2, 3))
    rows = ["".join("#" if pixel.any() else "." for pixel in row) for row in picture]
    assert rows == ["#####", "#....", "#....", "####.", "#....", "#....", "#####", "....."]
    assert picture.max(axis=(0, 1)).tolist() == [1, 2, 3]


def test_every_letter_and_digit_has_a_form_of_its_own():
    letters = string.ascii_letters + string.digits
    assert set(letters) <= set(GLYPHS)
    assert len({GLYPHS[letter] for letter in letters}) == len(letters)


def test_what_does_not_fit_is_cut_off_and_nothing_else_changes():
    for down, right in ((-3, -4), (3, 15), (100, 100), (-100, 0)):
        picture = np.zeros((10, 20, 3), np.uint8)
        draw_text(picture, "step 12", down, right, scale=2)
        assert picture.shape == (10, 20, 3)
    whole = np.zeros((*text_size("ab", 2), 3), np.uint8)
    draw_text(whole, "ab", 0, 0, scale=2)
    wide = np.zeros((30, 60, 3), np.uint8)
    draw_text(wide, "ab", 5, 7, scale=2)
    assert np.array_equal(wide[5 : 5 + whole.shape[0], 7 : 7 + whole.shape[1]], whole)
    assert wide.sum() == whole.sum()
