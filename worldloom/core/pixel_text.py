"""Text on pictures without a font package: five by eight pixels a letter, as on small displays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["draw_text", "text_size", "with_margin"]

WIDTH, HEIGHT = 6, 8
"""Pixels of a letter, one empty column included."""
GLYPHS = dict(
    entry.split(" ", 1)
    for entry in (
        "! 00005F0000|\" 0007000700|# 147F147F14|% 2313086462|' 0000070000|( 001C224100|"
        ") 0041221C00|* 2A1C7F1C2A|+ 08083E0808|, 0080703000|- 0808080808|. 0000606000|"
        "/ 2010080402|0 3E5149453E|1 00427F4000|2 7249494946|3 2141494D33|4 1814127F10|"
        "5 2745454539|6 3C4A494931|7 4121110907|8 3649494936|9 464949291E|: 0000140000|"
        "; 0056360000|? 0201510906|"
        "= 1414141414|A 7C1211127C|B 7F49494936|C 3E41414122|D 7F4141413E|E 7F49494941|"
        "F 7F09090901|G 3E41415173|H 7F0808087F|I 00417F4100|J 2040413F01|K 7F08142241|"
        "L 7F40404040|M 7F021C027F|N 7F0408107F|O 3E4141413E|P 7F09090906|Q 3E4151215E|"
        "R 7F09192946|S 2649494932|T 03017F0103|U 3F4040403F|V 1F2040201F|W 3F4038403F|"
        "X 6314081463|Y 0304780403|Z 6159494D43|[ 007F414141|] 004141417F|_ 4040404040|"
        "a 2054547840|b 7F28444438|c 3844444428|d 384444287F|e 3854545418|f 00087E0902|"
        "g 18A4A49C78|h 7F08040478|i 00447D4000|j 2040403D00|k 7F10284400|l 00417F4000|"
        "m 7C04780478|n 7C08040478|o 3844444438|p FC18242418|q 18242418FC|r 7C08040408|"
        "s 4854545424|t 04043F4424|u 3C4040207C|v 1C2040201C|w 3C4030403C|x 4428102844|"
        "y 4C9090907C|z 4464544C44"
    ).split("|")
)
"""Letter -> its five columns, the lowest bit above."""
UNKNOWN = "7F4141417F"
GAP = 3
"""Pixels between a text and what is beside it."""


def text_size(text: str, scale: int = 1) -> tuple[int, int]:
    """Height and width of a text in pixels."""
    return HEIGHT * scale, max(0, WIDTH * len(text) - 1) * scale


def draw_text(
    picture: np.ndarray,
    text: str,
    down: int,
    right: int,
    colour: tuple[int, int, int] = (235, 235, 235),
    scale: int = 1,
) -> None:
    """Write into a picture, in place; what does not fit is cut off at its edge.

    Args:
        picture: ``[Y, X, 3]`` uint8.
        text: ASCII; another letter is a box.
        down, right: Of its upper left corner.
        colour: Red, green and blue.
        scale: Pixels of the picture for one of a letter.
    """
    lit = np.zeros((HEIGHT, WIDTH * len(text)), bool)
    for place, letter in enumerate(text):
        if letter == " ":
            continue
        columns = np.frombuffer(bytes.fromhex(GLYPHS.get(letter, UNKNOWN)), np.uint8)
        bits = np.unpackbits(columns[:, None], axis=1, bitorder="little")  # [5, 8]
        lit[:, place * WIDTH : place * WIDTH + 5] = bits.T
    lit = np.repeat(np.repeat(lit, scale, axis=0), scale, axis=1)
    room = picture[max(down, 0) : down + lit.shape[0], max(right, 0) : right + lit.shape[1]]
    shown = lit[max(-down, 0) :, max(-right, 0) :][: room.shape[0], : room.shape[1]]
    room[shown] = colour


def with_margin(
    frames: np.ndarray, labels: Sequence[tuple[int, str]], above: Sequence[str] = ()
) -> np.ndarray:
    """Frames with names beside their rows, and a line above; wide enough for both.

    Args:
        frames: ``[T, Y, X, 3]`` uint8.
        labels: Row of pixels at which a name begins, and the name.
        above: A line for each frame, or one for all; none leaves no room for it.

    Returns:
        ``[T, top + Y, left + X + right, 3]`` on black; the frames as they are.
    """
    count, height, width, channels = frames.shape
    left = max((text_size(text)[1] for _, text in labels), default=-2 * GAP) + 2 * GAP
    top = HEIGHT + 2 * GAP if above else 0
    wanted = max((text_size(text)[1] for text in above), default=0)
    made = np.zeros((count, top + height, left + max(width, wanted + GAP), channels), np.uint8)
    made[:, top:, left : left + width] = frames
    for index, frame in enumerate(made):
        if above:
            draw_text(frame, above[index] if len(above) > 1 else above[0], GAP, left)
        for down, text in labels:
            draw_text(frame, text, top + down, GAP)
    return made
