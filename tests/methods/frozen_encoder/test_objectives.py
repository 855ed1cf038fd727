"""Linear Gradient Matching against PyTorch's autograd, one step in float64; CLP-DD's loss; the pyramid; the crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssdd_jax.methods.frozen_encoder import distortions, objectives, pyramid

CLASSES, COUNT, SIDE, DIM, COPIES, REAL = 3, 6, 8, 5, 2, 9
LABELS = np.repeat(np.arange(CLASSES), COUNT // CLASSES)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


KERNEL, WEIGHTS = numbers(3, 3, 3, 4, seed=1) / 3, numbers(4 * SIDE * SIDE, DIM, seed=2) / 8


def encode(pixels):
    """A small network, as a stand-in for an encoder."""
    hidden = lax.conv_general_dilated(
        pixels, jnp.asarray(KERNEL), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return jnp.dot(jnp.tanh(hidden).reshape(len(pixels), -1), jnp.asarray(WEIGHTS), precision="highest")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.medium
@pytest.mark.parametrize("count", [1, 2, 4])
def test_loss_and_gradient_equal_torch(count, x64):
    """Of the levels of the pyramid, through colours, crops, noise, the network and the gradient of the head."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    levels = [numbers(COUNT, *size, 3, seed=3 + i) for i, size in enumerate(pyramid.sizes(SIDE, SIDE))]
    head, real = numbers(DIM, CLASSES, seed=8) / 10, numbers(REAL, DIM, seed=9)
    real_labels = np.random.default_rng(10).integers(0, CLASSES, REAL)
    drawn = distortions.draw(jax.random.key(0), (COPIES * COUNT, SIDE, SIDE, 3))
    drawn = jax.tree.map(np.asarray, drawn)
    assert 0 < drawn.flip.sum() < len(drawn.flip) and np.any(drawn.noise) and not np.all(drawn.noise)

    def loss(levels):
        images = jnp.tile(pyramid.decode(levels, count), (COPIES, 1, 1, 1))
        found = objectives.head_gradient(head, encode(distortions.apply(images, drawn)), np.tile(LABELS, COPIES))
        return objectives.gradient_matching(objectives.head_gradient(head, real, real_labels), found)

    found, gradient = jax.jit(jax.value_and_grad(loss))(tuple(map(jnp.asarray, levels)))

    # The same in PyTorch, channels first, with gradients of gradients.
    pieces = [torch.tensor(np.moveaxis(level, -1, 1)).requires_grad_() for level in levels]
    large = [functional.interpolate(piece, (SIDE, SIDE), mode="bilinear") for piece in pieces[:count]]
    colours = torch.tensor(pyramid.COLOURS / np.linalg.norm(pyramid.COLOURS, axis=0).max()).double()
    images = torch.sigmoid(2 * torch.einsum("nchw,dc->ndhw", sum(large), colours)).repeat(COPIES, 1, 1, 1)
    images = torch.where(torch.tensor(drawn.flip)[:, None, None, None], images.flip(3), images)
    left, top, wide, high = torch.tensor(drawn.box).double().unbind(1)
    theta = torch.zeros(len(images), 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1] = wide, high
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + wide - 1, 2 * top + high - 1
    grid = functional.affine_grid(theta, images.shape, align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    images = images + torch.tensor(np.moveaxis(drawn.noise, -1, 1))
    hidden = functional.conv2d(images, torch.tensor(KERNEL.transpose(3, 2, 0, 1)), padding=1)
    features = torch.tanh(hidden).permute(0, 2, 3, 1).flatten(1) @ torch.tensor(WEIGHTS)
    linear = torch.tensor(head.T).requires_grad_(), torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)

    def in_head(features, labels, **options):
        entropy = functional.cross_entropy(functional.linear(features, *linear), torch.tensor(labels))
        return torch.cat([part.flatten() for part in torch.autograd.grad(entropy, linear, **options)])

    aim = in_head(torch.tensor(real), real_labels)
    own = in_head(features, np.tile(LABELS, COPIES), create_graph=True)
    expected = 1 - functional.cosine_similarity(aim, own, dim=0)
    expected.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-6)
    for number, (mine, piece) in enumerate(zip(gradient, pieces, strict=True)):
        if number >= count:
            assert piece.grad is None and not np.any(mine)
        else:
            np.testing.assert_allclose(mine, np.moveaxis(piece.grad.numpy(), 1, -1), rtol=1e-6, atol=1e-12)


def test_the_gradient_of_a_head_is_that_of_its_cross_entropy():
    head, features, labels = numbers(DIM, CLASSES), numbers(7, DIM, seed=1), np.arange(7) % CLASSES

    def entropy(head, bias):
        scores = jax.nn.log_softmax(features.astype(np.float32) @ head + bias[None])
        return -jnp.take_along_axis(scores, labels[:, None], 1).mean()

    expected = jax.grad(entropy, (0, 1))(jnp.asarray(head, jnp.float32), jnp.zeros(CLASSES))
    found = objectives.head_gradient(head.astype(np.float32), features.astype(np.float32), labels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert float(objectives.gradient_matching(found, found)) == pytest.approx(0, abs=1e-6)
    opposite = jax.tree.map(lambda part: -part, found)
    assert float(objectives.gradient_matching(found, opposite)) == pytest.approx(2, abs=1e-6)


def test_the_head_in_closed_form_is_ridge_regression(x64):
    """The same predictions as the normal equations' in feature space."""
    own, real = numbers(COUNT, DIM), numbers(REAL, DIM, seed=1)
    wanted, scale, temperature = np.eye(CLASSES)[LABELS] - 1 / CLASSES, 1e-2, 0.3
    ridge = scale * np.trace(own @ own.T)
    head = np.linalg.solve(own.T @ own + ridge * np.eye(DIM), own.T @ wanted)
    scores = real @ head / temperature
    labels = np.arange(REAL) % CLASSES
    expected = np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(REAL), labels])
    found = objectives.closed_form(
        (jnp.asarray(own), jnp.asarray(LABELS)), (jnp.asarray(real), jnp.asarray(labels)),
        classes=CLASSES, ridge_scale=scale, temperature=temperature,
    )  # fmt: skip
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_sizes_of_a_pyramid():
    assert pyramid.sizes(8, 8) == ((1, 1), (2, 2), (4, 4), (8, 8))
    assert pyramid.sizes(12, 6) == ((1, 1), (2, 1), (4, 2), (8, 4), (12, 6))
    assert pyramid.sizes(1, 1) == ((1, 1),)


def test_levels_join_as_published():
    """After every 200 steps, first before step 201; the sum keeps its size."""
    used = [int(pyramid.used(step, every=200, most=3)) for step in (0, 1, 200, 201, 400, 401, 9999)]
    assert used == [1, 1, 1, 2, 2, 3, 3]
    levels = pyramid.init(jax.random.key(0), 50, (4, 4, 3))
    assert np.any(levels[0]) and not any(np.any(level) for level in levels[1:])
    more = pyramid.extend(jax.random.key(1), levels, jnp.int32(1))
    np.testing.assert_allclose(more[0], levels[0] / 2, rtol=1e-6)
    assert abs(float(more[1].std()) - 0.5) < 0.05 and not np.any(more[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_pixels(channels):
    """And a grey picture has no colours to decorrelate."""
    levels = pyramid.init(jax.random.key(0), 4, (5, 4, channels))
    images = pyramid.decode(levels, 1)
    assert images.shape == (4, 5, 4, channels) and 0 < float(images.min()) < float(images.max()) < 1
    if channels == 1:
        np.testing.assert_allclose(images[:, 0, 0], jax.nn.sigmoid(2 * levels[0][:, 0, 0]), rtol=1e-6)


def test_a_whole_crop_changes_nothing():
    images = numbers(2, 6, 8, 3).astype(np.float32)
    whole = distortions.Draw(jnp.array([False, True]), jnp.tile(jnp.array([0.0, 0, 1, 1]), (2, 1)), None)
    found = distortions.apply(images, whole)
    np.testing.assert_allclose(found[0], images[0], atol=1e-6)
    np.testing.assert_allclose(found[1], images[1, :, ::-1], atol=1e-6)


def test_draws_are_within_their_bounds():
    drawn = distortions.draw(jax.random.key(0), (2000, 4, 4, 3), distortions.Settings(noise=False))
    left, top, width, height = np.asarray(drawn.box).T
    area, aspect = width * height, width / height
    assert drawn.noise is None and 0.4 < drawn.flip.mean() < 0.6
    assert area.min() >= 0.08 - 1e-6 and area.max() <= 1 + 1e-6 and aspect.min() >= 0.75 - 1e-6
    # As published, a wide crop of nearly the whole area may begin outside of the image.
    assert (left + width <= np.maximum(1, width) + 1e-6).all() and (top + height <= np.maximum(1, height) + 1e-6).all()
