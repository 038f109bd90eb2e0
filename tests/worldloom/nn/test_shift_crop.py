"""The shift augmentation equals padding and cropping, image by image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec
from worldloom.nn.layout import ObsLayout
from worldloom.nn.shift_crop import SHIFT_PAD, channel_axis, resize, shift_crop


def test_shift_equals_pad_and_crop() -> None:
    images = torch.randint(0, 256, (6, 3, 10, 14), dtype=torch.uint8)
    shift = torch.tensor([[0, 0], [6, 6], [3, 3], [0, 6], [5, 1], [2, 4]])
    got = shift_crop(images, shift)
    padded = F.pad(images.float(), (SHIFT_PAD,) * 4, mode="replicate")
    for i, (x, y) in enumerate(shift.tolist()):
        assert torch.equal(got[i].float(), padded[i, :, y : y + 10, x : x + 14])
    assert torch.equal(got[2], images[2])


def test_the_channel_axis_is_the_smaller_end() -> None:
    assert channel_axis((9, 64, 64)) == 0
    assert channel_axis((64, 64, 9)) == 2
    assert channel_axis((1, 48, 36)) == 0
    assert channel_axis((36, 48, 3)) == 2


def test_resize_keeps_a_fitting_image_and_the_mean_of_others() -> None:
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert resize(image, 64) is image
    flat = torch.full((1, 3, 100, 40), 77, dtype=torch.uint8)
    torch.testing.assert_close(resize(flat, 64), torch.full((1, 3, 64, 64), 77.0))


@pytest.mark.parametrize("shape", [(3, 64, 64), (12, 32, 32), (36, 64, 96), (9, 84, 84)])
def test_channels_are_the_smaller_end(shape: tuple[int, ...]) -> None:
    assert channel_axis(shape) == 0
    assert channel_axis((*shape[1:], shape[0])) == 2


@pytest.mark.parametrize("shape", [(32, 32, 36), (36, 32, 32), (40, 32, 36), (64, 64, 64)])
def test_as_many_channels_as_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"fewer channels than rows.*frame_stack"):
        channel_axis(shape)
    with pytest.raises(ConfigurationError, match="fewer channels than rows"):
        ObsLayout.from_specs({"obs": ArraySpec(shape, "uint8")})
