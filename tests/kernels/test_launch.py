"""How frames are cut into strips, and what the table of configurations may hold."""

import math

import pytest
import torch
from dover_kernels.dwconv3d_layernorm import launch

ROLES = ("inference", "training", "input_gradient", "weight_gradient")
LAYERS = [(C, k_t) for C in (8, 40, 80, 96, 160, 192, 384, 768, 776) for k_t in (1, 3, 5, 7)]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("role", ROLES)
def test_configurations_tile_the_channels_and_are_at_most_four(role, itemsize):
    for C, k_t in LAYERS:
        tiles = launch.candidates(role, C, k_t, itemsize)
        assert 1 <= len(tiles) <= 4
        for tile in tiles:
            assert C % (tile.BC * tile.NC) == 0, (C, tile)
            assert tile.BC & (tile.BC - 1) == tile.BP & (tile.BP - 1) == 0, (C, tile)
            assert tile.R >= 3, "a strip is at least as wide as the kernel's halo"
            assert tile.NC == 1 or (role == "inference" and tile.NC * tile.BC == C), (C, tile)


@pytest.mark.parametrize("role", ["inference", "training"])
@pytest.mark.parametrize("C", [8, 16, 32])
def test_configurations_that_take_layernorm_along_add_in_one_order(C, role):
    """Timing chooses among them, and the bits must not depend on it."""
    assert len({(tile.BP, tile.per_sm) for tile in launch.candidates(role, C, 3, 4)}) == 1


@pytest.mark.parametrize(("W", "R"), [(160, 10), (56, 8), (28, 7), (7, 7), (11, 7)])
def test_a_strip_that_divides_the_row_is_preferred_then_the_narrowest(W, R):
    assert launch.fits(launch.candidates("training", 96, 3, 2), W)[0].R == R


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize(("H", "W", "R"), [(1, 1, 8), (7, 7, 7), (20, 20, 10), (13, 9, 4)])
def test_strips_cover_every_position_once(H, W, R, rows):
    strips = launch.Strips.cut(3, H, W, R, rows)
    assert strips.count == 3 * strips.rows * strips.columns
    assert (strips.rows - 1) * strips.height < H <= strips.rows * strips.height
    assert (strips.columns - 1) * R < W <= strips.columns * R
    assert strips.even == (W % R == 0)


def test_small_frames_fill_a_program_together():
    tile = launch.Tile(R=7, BP=8, BC=32)
    strips = launch.plan(tile, torch.Size((1, 768, 32, 7, 7)), 132)
    assert math.ceil(strips.count / tile.BP) == 4


def test_few_strips_are_cut_until_they_fill_the_device():
    tile = launch.Tile(R=8, BP=8, BC=32)
    one, many = (launch.plan(tile, torch.Size((1, 96, 8, 160, 160)), n) for n in (1, 132))
    assert one.rows == 1
    assert many.rows > 1


def test_where_no_memory_is_left_to_time_configurations_the_first_is_taken(monkeypatch):
    asked = []

    def no_memory(run, **_options):
        asked.append(run)
        raise torch.OutOfMemoryError("256 MB")

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_tuned", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(launch.triton.testing, "do_bench", no_memory)
    x = torch.empty(1, 24, 2, 8, 8)
    first = launch.fits(launch.candidates("training", 24, 3, 4), 8)[0]
    for _ in range(2):
        assert launch._choose("training", x, 3, lambda tile: None) == first
    assert len(asked) == 1, "later calls take what this one took"


def test_on_a_cpu_without_the_interpreter_the_launcher_refuses():
    if launch.INTERPRETED:
        pytest.skip("this is the interpreter's process")
    with pytest.raises(RuntimeError, match="run on a GPU, got a tensor on cpu"):
        launch.input_gradient(torch.zeros(1, 8, 1, 2, 2), torch.zeros(8, 1, 1, 3, 3))
