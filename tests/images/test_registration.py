from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.data import astronaut, camera
from skimage.transform import EuclideanTransform, resize, warp

from skmkd._images.registration import (
    PIXELS,
    Template,
    edges_of,
    template_size,
    vertex,
)

POSES = [(0, 0, 0), (3.2, 0, 0), (0, 11, -7.5), (-7.6, 5.2, 14), (9, -20, 3)]  # of 256 pixels


def place_in_image(pose, frame):
    """Return the transform of places (x, y) of the template's object to those of the image."""
    angle, rows, columns = pose
    centre = (np.array(frame[::-1]) - 1) / 2
    to_centre, back = (
        EuclideanTransform(translation=t) for t in (-centre, centre + np.array([columns, rows]))
    )
    return to_centre + EuclideanTransform(rotation=-np.deg2rad(angle)) + back


def moved(photograph, pose, frame):
    """Move the middle of a photograph, whose surroundings come into the frame."""
    margin = (np.array(photograph.shape[:2]) - frame) // 2
    to_image = place_in_image(pose, frame)
    inverse = EuclideanTransform(to_image.inverse.params)
    shifted = inverse + EuclideanTransform(translation=margin[::-1])
    return warp(photograph, shifted, output_shape=frame, order=3).astype(np.float32)


def as_tensor(image):
    return torch.from_numpy(np.moveaxis(np.atleast_3d(image), 2, 0).copy())


@pytest.fixture(scope="module")
def photograph():
    return resize(camera(), (400, 400), anti_aliasing=True)


def template_of(image):
    size = template_size(image.shape[1:])
    return Template(edges_of(image, size)), image.shape[1] / size[0]


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_templates_have_the_aspect_of_images_and_so_many_pixels(height, width):
    rows, columns = template_size((height, width))
    if min(rows, columns) > 20:
        assert rows / columns == pytest.approx(height / width, rel=0.05)
        assert rows * columns == pytest.approx(PIXELS, rel=0.05)


@given(st.floats(-0.5, 0.5), st.floats(0.1, 10), st.floats(-5, 5))
def test_vertex_of_a_parabola(top, bend, height):
    values = [height - bend * (x - top) ** 2 for x in (-1, 0, 1)]
    assert vertex(*values) == pytest.approx(top, abs=1e-6)


def test_there_is_no_vertex_beside_the_highest_value_or_on_a_line():
    assert vertex(1, 2, 3) == vertex(1, 1, 1) == vertex(3, 2, 1) == 0


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("frame", [(256, 256), (200, 300)])
def test_shift_and_angle_of_a_photograph_are_found(photograph, pose, frame):
    still, other = (as_tensor(moved(photograph, each, frame)) for each in ((0, 0, 0), pose))
    template, scale = template_of(still)
    angle, rows, columns = template.poses(other[None])[0] * (1, scale, scale)
    assert angle == pytest.approx(pose[0], abs=0.3)
    assert_allclose((rows, columns), pose[1:], atol=0.5)


def test_light_contrast_colour_and_resizing_matter_little():
    photograph = resize(astronaut(), (400, 400), anti_aliasing=True)
    pose = (5, -6, 10)
    still, other = (moved(photograph, each, (256, 256)) for each in ((0, 0, 0), pose))
    template, scale = template_of(as_tensor(still))
    dark = np.float32(0.2) + np.float32(0.3) * resize(other, (160, 200), anti_aliasing=True)
    found = template.poses(as_tensor(dark)[None])[0] * (1, scale, scale)
    assert_allclose(found, pose, atol=0.6)


@pytest.mark.parametrize("pose", POSES)
def test_registered_images_look_like_the_template_s(photograph, pose):
    still, other = (as_tensor(moved(photograph, each, (256, 256))) for each in ((0, 0, 0), pose))
    template, scale = template_of(still)
    exact = np.array([pose]) / (1, scale, scale)
    covered = template.covered(torch.ones(1, 256, 256, dtype=torch.bool), exact)[0]
    oracle = warp(np.ones((256, 256)), place_in_image(pose, (256, 256)), order=1) > 0.5
    assert (covered.numpy() != oracle).mean() < 0.01
    difference = (template.registered(other[None], exact)[0, 0] - still[0]).abs()[covered]
    assert difference.mean() < 0.02
    assert template.poses(template.registered(other[None], exact)) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("pose", POSES)
def test_maps_return_to_where_the_image_had_it(photograph, pose):
    template, scale = template_of(as_tensor(photograph[:256, :256].astype(np.float32)))
    exact = np.array([pose]) / (1, scale, scale)
    y, x = np.mgrid[:256, :256]
    spot = np.exp(-((y - 90) ** 2 + (x - 150) ** 2) / 50).astype(np.float32)
    returned = template.returned(torch.from_numpy(spot)[None], exact)[0].numpy()
    row, column = np.unravel_index(returned.argmax(), returned.shape)
    assert_allclose((column, row), place_in_image(pose, (256, 256))([[150, 90]])[0], atol=0.8)
    everything = template.returned(torch.ones(1, 256, 256), exact)[0].numpy()
    oracle = warp(np.ones((256, 256)), place_in_image(pose, (256, 256)).inverse, order=1)
    assert_allclose(everything, oracle, atol=0.2)
    assert (abs(everything - oracle) > 0.01).mean() < 0.02  # at the edges alone


def test_an_image_is_registered_whatever_the_others_are(photograph):
    images = torch.stack([as_tensor(moved(photograph, pose, (128, 128))) for pose in POSES])
    template, _ = template_of(images[0])
    poses = template.poses(images)
    together = template.registered(images, poses)
    for i in range(len(images)):
        assert_array_equal(template.poses(images[i : i + 1]), poses[i : i + 1])
        assert torch.equal(template.registered(images[i : i + 1], poses[i : i + 1])[0], together[i])


def test_an_image_without_edges_stays_where_it_is(photograph):
    template, _ = template_of(as_tensor(photograph.astype(np.float32)))
    assert_array_equal(template.poses(torch.full((1, 3, 20, 20), 0.4)), np.zeros((1, 3)))
    blank = Template(np.zeros((64, 64), np.float32))
    assert_array_equal(blank.poses(torch.rand(1, 1, 64, 64)), np.zeros((1, 3)))


def test_a_template_is_learned_where_most_objects_are(photograph):
    shifts = [-20, 0, 1, -1, 2, 0]
    images = [as_tensor(moved(photograph, (0, shift, 0), (256, 256))) for shift in shifts]
    template = Template.learned(images, (256, 256))
    found = template.poses(torch.stack(images))
    assert_allclose(2 * found[:, 1], shifts, atol=1.1)  # templates have half the size
    assert_allclose(found[:, [0, 2]], 0, atol=0.3)


@pytest.mark.parametrize("blank", [[0], [2], [0, 1, 2, 3]])
def test_a_template_is_learned_from_the_images_that_show_something(photograph, blank):
    poses = [(1, 0, 0), (0, 5, 1), (0, 0, 0), (2, -4, 3), (-1, 1, 1)]
    images = [as_tensor(moved(photograph, pose, (128, 128))) for pose in poses]
    for i in blank:
        images[i] = torch.full_like(images[i], 0.4)
    others = [images[i] for i in range(5) if i not in blank]
    expected = Template.learned(others, (128, 128)).edges
    assert_array_equal(Template.learned(images, (128, 128)).edges, expected)
    assert not Template.learned([images[blank[0]]], (128, 128)).edges.any()
