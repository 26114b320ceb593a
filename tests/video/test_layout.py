"""Arrays and tensors: the layout is an argument, the range is one of two, everything else is refused as it came."""

import numpy as np
import pytest
import torch

from dover_eval.video.layout import check_clip, split_clips

CLIP = torch.arange(5 * 3 * 6 * 8).mul(7).to(torch.uint8).view(5, 3, 6, 8)  # T,C,H,W; each of the 256 values, 0 too


@pytest.mark.parametrize("layout", ["TCHW", "CTHW", "THWC", "CHWT"])
@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_any_order_of_axes(layout, kind):
    clip = CLIP.permute(*("TCHW".index(letter) for letter in layout))
    given = {"tensor": clip, "array": clip.numpy(), "list": [clip, clip.numpy()]}[kind]
    for found in split_clips(given, layout):
        assert torch.equal(found, CLIP)


@pytest.mark.parametrize("layout", ["BTCHW", "BCTHW", "BTHWC"])
def test_batches(layout):
    batch = torch.stack([CLIP, CLIP.flip(0)]).permute(*("BTCHW".index(letter) for letter in layout))
    first, second = split_clips(batch, layout)
    assert torch.equal(first, CLIP)
    assert torch.equal(second, CLIP.flip(0))


def test_three_frames_and_three_channels_are_told_apart_by_the_layout_alone():
    clip = torch.arange(3 * 3 * 4 * 4, dtype=torch.uint8).view(3, 3, 4, 4)
    assert torch.equal(split_clips(clip, "CTHW")[0], clip.transpose(0, 1))
    with pytest.raises(ValueError, match="need layout="):
        split_clips(clip, None)


@pytest.mark.parametrize(
    ("clip", "layout", "words"),
    [
        (CLIP, "TCH", "a layout of T, C, H and W"),
        (CLIP, "TCHB", "a layout of T, C, H and W"),
        (CLIP, "BTCHW", r'5 dimensions for layout "BTCHW", got shape \(5, 3, 6, 8\)'),
        (CLIP, "CTHW", r"three channels \(RGB\), got 5"),
        (CLIP[:0], "TCHW", r"at least one frame.*\(0, 3, 6, 8\)"),
        (CLIP[..., :0], "TCHW", "at least one frame and one pixel"),
        (CLIP.int(), "TCHW", "uint8 in 0-255 or float in 0-1.*int32"),
        (CLIP.numpy().astype(np.int16), "TCHW", "uint8 or a floating dtype, got videos of dtype int16"),
        (CLIP.numpy().astype(np.longdouble), "TCHW", "uint8 or a floating dtype, got videos of dtype"),
        (np.ma.masked_array(CLIP.numpy(), False), "TCHW", "every value counts for videos, got a MaskedArray"),
        (CLIP.float().to(torch.float8_e5m2), "TCHW", "uint8 in 0-255 or float in 0-1.*float8"),
        (CLIP.float(), "TCHW", "float in 0-1.*float32 with values from"),
        (CLIP.float() / 127.5 - 1, "TCHW", "with values from -1.0 to 1.0$"),
        (CLIP.float() / 255 * 1.00001, "TCHW", r"with values from 0.0 to 1.0000\d*[1-9]\d*; clamp it"),
        (CLIP.double() / 255 - 1e-15, "TCHW", r"with values from -1e-15 to 0.99\d+; clamp it"),
        (torch.full((5, 3, 6, 8), torch.nan), "TCHW", "values from nan"),
        (torch.full((5, 3, 6, 8), torch.inf), "TCHW", "values from inf"),
    ],
)
def test_what_is_not_as_said_is_refused(clip, layout, words):
    with pytest.raises(ValueError, match=words):
        split_clips(clip, layout)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="got dict"):
        split_clips({}, "TCHW")
    with pytest.raises(TypeError, match=r"videos\[1\], got int"):
        split_clips([CLIP, 3], "TCHW")
    with pytest.raises(ValueError, match="without B"):
        split_clips([CLIP], "BTCHW")


def test_nothing_is_copied():
    assert split_clips(CLIP, "TCHW")[0].data_ptr() == CLIP.data_ptr()
    strided = CLIP.numpy().transpose(0, 2, 3, 1)[::2]
    assert split_clips(strided, "THWC")[0].data_ptr() == CLIP.data_ptr()


def test_a_read_only_array_is_neither_copied_nor_warned_of(recwarn):
    locked = np.frombuffer(CLIP.numpy().tobytes(), np.uint8).reshape(CLIP.shape)[::2, :, 1:]
    (found,) = split_clips(locked, "TCHW")
    assert found.data_ptr() == locked.ctypes.data
    del locked
    assert torch.equal(found, CLIP[::2, :, 1:])
    assert not recwarn.list


def test_an_array_that_is_read_backwards_is_taken_as_it_reads():
    assert torch.equal(split_clips(CLIP.numpy()[::-1], "TCHW")[0], CLIP.flip(0))


def test_a_field_of_records_is_taken_as_it_reads():
    records = np.zeros(CLIP.shape, dtype=[("tag", np.uint8), ("value", np.float32)])
    records["value"] = CLIP / 255
    assert torch.equal(split_clips(records["value"], "TCHW")[0], CLIP / 255)


def test_a_clip_may_be_held_to_another_range() -> None:
    clip = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert check_clip(clip, "TCHW", "clip", (-1, 1)) is not None
    with pytest.raises(ValueError, match=r"expected float from -1 to 1, got clip .* with values from -2.0 to 2.0$"):
        check_clip(2 * clip, "TCHW", "clip", (-1, 1))
