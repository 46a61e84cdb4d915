"""DeepPap's patches: one interpolation against its steps one by one, and what is drawn how often."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from papsmear.probes.deeppap import PROTOCOL, DeepPap
from papsmear.probes.nuclei import Nucleus
from papsmear.probes.patches import Views, displacements, views_to_test, views_to_train


def picture(height: int = 180, width: int = 230) -> np.ndarray:
    """Smooth colours without any symmetry, so that two interpolations in a row give what one gives."""
    noise = np.random.default_rng(0).uniform(0, 255, (height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 205 + 50).astype(np.uint8)


def view(angle: float, shift: tuple[float, float], corner: tuple[int, int], mirrored: bool) -> Views:
    return Views(
        np.zeros(1, int), np.array([angle]), np.array([shift]), np.array([corner], float), np.array([mirrored])
    )


def step_by_step(
    image: np.ndarray,
    xy: tuple[float, float],
    angle: float,
    shift: tuple[int, int],
    corner: tuple[int, int],
    flip: bool,
) -> np.ndarray:
    """Zeros all round, move, turn about the centre, cut 128 px, enlarge to 256, crop 227, mirror: each step by itself.

    `xy` is half-way between pixels, so that 128 pixels lie evenly round it.
    """
    padded = np.pad(image, ((300, 300), (300, 300), (0, 0)))
    x, y = (round(v + 0.5) + move + 300 for v, move in zip(xy, shift, strict=True))
    around = padded[y - 128 : y + 128, x - 128 : x + 128]
    turned = ndimage.rotate(around, angle, axes=(1, 0), reshape=False, order=1)
    large = cv2.resize(turned[64:192, 64:192], (256, 256), interpolation=cv2.INTER_LINEAR)
    crop = large[corner[1] : corner[1] + 227, corner[0] : corner[0] + 227]
    return crop[:, ::-1] if flip else crop


@pytest.mark.parametrize(
    ("angle", "shift", "corner", "flip"),
    [
        (0, (0, 0), (14, 14), False),
        (90, (0, 0), (0, 29), False),
        (180, (9, -4), (29, 3), True),
        (36, (0, 0), (10, 20), False),
        (-72, (-7, 5), (0, 0), True),
        (198, (3, 8), (29, 29), False),
    ],
)
def test_one_interpolation_is_what_the_steps_give_one_by_one(
    angle: float, shift: tuple[int, int], corner: tuple[int, int], flip: bool
) -> None:
    image, xy = picture(), (119.5, 84.5)
    found = view(angle, shift, corner, flip).cut(0, image, Nucleus(xy, 128), 227).astype(int)
    expected = step_by_step(image, xy, angle, shift, corner, flip).astype(int)
    inside = cv2.erode((expected.min(axis=2) > 40).astype(np.uint8), np.ones((7, 7))) > 0
    inside[[0, -1]] = inside[:, [0, -1]] = False  # where cv2.resize repeats the patch's own rim
    assert np.abs(found - expected)[inside].max() <= 2
    assert inside.mean() > 0.6
    assert np.abs(found - expected[:, ::-1])[inside].mean() > 5, "the picture tells left from right"


def test_outside_the_image_is_zero() -> None:
    image = np.full((60, 60, 3), 200, np.uint8)
    found = view(0, (0, 0), (14, 14), False).cut(0, image, Nucleus((0.0, 59.0), 128), 227)
    assert not found[:, :90].any(), "left of the image"
    assert not found[130:].any(), "below the image"
    assert (found[20:100, 130:200] == 200).all()


def test_the_nucleus_is_in_the_middle_at_any_turn_size_and_scale() -> None:
    """The crop's middle shows the centroid; a patch twice as large on a picture twice as large is the same view."""
    image = np.zeros((200, 240, 3), np.uint8)
    cv2.circle(image, (150, 70), 9, (255, 255, 255), -1)
    double = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    views = views_to_train(np.zeros(1, int), np.array([True]), PROTOCOL, 0).upright()
    for angle in (0.0, 36.0, 200.0):
        turned = Views(views.cell, np.full(len(views), angle), views.shift, views.corner, views.mirrored)
        for side in (96, 227):
            small = turned.cut(0, image, Nucleus((150, 70), 128), side)
            large = turned.cut(0, double, Nucleus((300.5, 140.5), 256), side)
            for found in (small, large):
                rows, columns = np.nonzero(found[:, :, 0] > 127)
                middle = (side - 1) / 2
                assert (columns.mean(), rows.mean()) == pytest.approx((middle, middle), abs=0.1)
            assert (small > 127).mean() == pytest.approx((large > 127).mean(), rel=0.05)


def test_rotations_and_translations_balance_the_sides() -> None:
    """675 abnormal cells in 10 x 10 views and 242 normal ones in 20 x 14: 67,500 and 67,760 patches."""
    abnormal = np.arange(917) < 675
    views = views_to_train(np.arange(917), abnormal, PROTOCOL, 0, "x")
    counts = np.bincount(views.cell)
    assert set(counts[:675]) == {100}
    assert set(counts[675:]) == {280}
    assert (int(abnormal[views.cell].sum()), int((~abnormal)[views.cell].sum())) == (67_500, 67_760)
    for cell, step, times in ((3, 36, 10), (800, 18, 14)):
        angles, number = np.unique(views.angle[views.cell == cell], return_counts=True)
        assert angles.tolist() == [step * i for i in range(360 // step)]
        assert set(number) == {times}
    away = np.hypot(*views.shift.T)
    assert 9.9 < away.max() <= 10
    assert abs(views.shift.mean()) < 0.1
    assert {*np.unique(views.corner)} == {*range(30)}
    assert 0.48 < views.mirrored.mean() < 0.52


def test_epochs_differ_in_order_crop_and_mirror_alone() -> None:
    plan, abnormal = DeepPap(abnormal=(3, 2), normal=(4, 3)), np.array([True, False, True])
    one, same, two = (views_to_train(np.array([0, 1]), abnormal, plan, 7, "binary", epoch) for epoch in (0, 0, 1))
    for field in ("cell", "angle", "shift", "corner", "mirrored"):
        assert np.array_equal(getattr(one, field), getattr(same, field))
    assert not np.array_equal(one.cell, two.cell)
    assert not np.array_equal(one.corner, two.corner)
    patches = [sorted(zip(v.cell, v.angle, *v.shift.T, strict=True)) for v in (one, two)]
    assert patches[0] == patches[1]
    assert len(patches[0]) == 6 + 12


def test_a_test_cell_is_seen_in_100_views_of_10_crops() -> None:
    views = views_to_test(np.array([4, 2]), PROTOCOL, 0)
    assert np.bincount(views.cell).tolist() == [0, 0, 1000, 0, 1000]
    of_cell = views.cell == 4
    assert len({*zip(views.angle[of_cell], *views.shift[of_cell].T, strict=True)}) == 100
    crops = {*zip(*views.corner[of_cell].T.tolist(), views.mirrored[of_cell].tolist(), strict=True)}
    places = [(14.5, 14.5), (0, 0), (29, 0), (0, 29), (29, 29)]
    assert crops == {(x, y, mirrored) for x, y in places for mirrored in (False, True)}
    few = views_to_test(np.array([4]), DeepPap(views=(2, 1), crops=1), 0)
    assert few.corner.tolist() == [[14.5, 14.5]] * 2, "a single crop is the middle one"


def test_displaced_views_look_at_another_centre() -> None:
    """A displacement moves every view of a cell by that distance, in one direction, the same for each distance."""
    views = views_to_test(np.array([1, 0]), DeepPap(views=(3, 2), crops=1), 0)
    for px in (1, 10):
        offset = displacements(3, px, 0)
        assert np.hypot(*offset.T) == pytest.approx(px)
        assert offset == pytest.approx(px * displacements(3, 1, 0))
        moved = views.displaced(offset)
        for cell in (0, 1):
            change = (moved.shift - views.shift)[views.cell == cell]
            assert change == pytest.approx(np.tile(offset[cell], (6, 1)))
    image = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(image, (100, 100), 5, (255, 255, 255), -1)
    upright = views.upright().displaced(np.array([[10.0, 0.0], [10.0, 0.0]]))
    found = upright.cut(0, image, Nucleus((100, 100), 128), 227)
    columns = np.nonzero(found[:, :, 0] > 127)[1]
    assert columns.mean() == pytest.approx(113 - 20, abs=0.2), "10 patch px are 20 crop px; the nucleus goes left"
