import numpy as np
import pytest

from worldloom.core.images import find_image_layout

X = 64
LAYOUTS = {
    (X, X): (X, X, 1),
    (X, 48): (X, 48, 1),
    (X, X, 3): (X, X, 3),
    (3, X, X): (X, X, 3),
    (1, 84, 84): (84, 84, 1),
    (4, 84, 84): (84, 84, 4),
    (16, 20, 20): (20, 20, 16),
    (3, 10, 10): (10, 10, 3),
    (10, 10, 3): (10, 10, 3),
    (7, 7, 3): (7, 7, 3),
    (4, X, X, 3): (X, X, 12),
    (4, 84, 84, 1): (84, 84, 4),
    (4, 3, X, X): (X, X, 12),
    (X, X, 3, 4): (X, X, 12),
    (X, X, 4, 3): (X, X, 12),
    (2, 7, 8, 3): (7, 8, 6),
    (31, X): None,
    (X,): None,
    (): None,
    (0, X, X): None,
    (10, 10, 10, 10): None,
    (X, X, X, X): None,
    (2, 4, X, X, 3): None,
}


@pytest.mark.parametrize("shape", LAYOUTS)
def test_image_layout_of_a_shape(shape: tuple[int, ...]) -> None:
    layout = find_image_layout(shape)
    assert (None if layout is None else layout.shape) == LAYOUTS[shape]


STACKS = {
    "KYXC": ((4, X, 48, 3), 0, 3),
    "KCYX": ((4, 3, X, 48), 0, 1),
    "YXCK": ((X, 48, 3, 4), 3, 2),
    "YXKC": ((X, 48, 5, 3), 2, 3),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_stack_of_images_becomes_channels_oldest_first(name: str, lead: tuple[int, ...]) -> None:
    shape, stack_axis, channel_axis = STACKS[name]
    layout = find_image_layout(shape)
    assert layout is not None
    count = shape[stack_axis]
    assert (layout.frames, layout.shape) == (count, (X, 48, 3 * count))
    frame = np.indices(shape)[stack_axis]
    channel = np.indices(shape)[channel_axis]
    value = np.broadcast_to(10 * frame + channel, lead + shape)
    image = layout(value)
    assert image.shape == (*lead, X, 48, 3 * count)
    right = [10 * k + c for k in range(count) for c in range(3)]
    assert (image == right).all()


def test_the_sides_stay_where_they_are() -> None:
    value = np.arange(3 * 40 * 50).reshape(3, 40, 50)
    layout = find_image_layout(value.shape)
    assert layout is not None
    assert np.array_equal(layout(value), np.moveaxis(value, 0, -1))
