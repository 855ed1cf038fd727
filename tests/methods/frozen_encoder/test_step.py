"""Outer steps of Linear Gradient Matching, as the method takes them, against PyTorch's autograd in float64."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssdd_jax import config as configuration
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.methods.base import Problem, Source
from ssdd_jax.methods.frozen_encoder import distortions, method, objectives, pyramid, stages
from ssdd_jax.models import frozen

# Neither square nor powers of two, with more training images than a step draws.
HEIGHT, WIDTH, DIM, CLASSES, COUNT, TRAINING, COPIES, LEVELS = 12, 6, 7, 3, 6, 40, 3, 5
GENERATOR = np.random.default_rng(0)
KERNEL = GENERATOR.normal(size=(3, 3, 3, 4)) / 3
WEIGHTS = GENERATOR.normal(size=(4 * HEIGHT * WIDTH, DIM)) / 8
IMAGES = GENERATOR.integers(0, 256, (TRAINING, HEIGHT, WIDTH, 3), np.uint8)
LABELS = GENERATOR.integers(0, CLASSES, TRAINING).astype(np.int32)
MEAN, DEVIATION = np.array([0.4, 0.5, 0.45]), np.array([0.2, 0.25, 0.3])
OWN = np.tile(np.repeat(np.arange(CLASSES), COUNT // CLASSES), COPIES)


class Encoder(NamedTuple):
    """A small network without batch norm."""

    features: int = DIM

    def apply(self, variables: Any, x: Any, *, train: bool, mutable: Any = False) -> Any:
        hidden = lax.conv_general_dilated(
            x, variables["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
        return jnp.dot(jnp.tanh(hidden).reshape(len(x), -1), variables["weights"], precision="highest")


def source():
    variables = {"kernel": jnp.asarray(KERNEL), "weights": jnp.asarray(WEIGHTS)}
    constants = Preprocessing(MEAN, DEVIATION, np.zeros(DIM), np.float64(1.7))
    return Source(
        jnp.asarray(IMAGES),
        jnp.zeros((TRAINING, DIM)),
        jnp.zeros(0, jnp.int32),
        jnp.zeros((1, 0, DIM)),
        jax.tree.map(jnp.asarray, constants),
        frozen.Frozen(variables, network=Encoder()),
        stages.Prepared(jnp.asarray(LABELS)),
    )


class Torch:
    """The published computation, channels first, with gradients of gradients; what is drawn is given to it."""

    def __init__(self, torch):
        self.torch, self.functional = torch, torch.nn.functional

    def tensor(self, array):
        return self.torch.tensor(np.asarray(array, np.float64))

    def decoded(self, levels):
        large = [self.functional.interpolate(level, (HEIGHT, WIDTH), mode="bilinear") for level in levels]
        colours = self.tensor(pyramid.COLOURS / np.linalg.norm(pyramid.COLOURS, axis=0).max())
        return self.torch.sigmoid(2 * self.torch.einsum("nchw,dc->ndhw", sum(large), colours))

    def augmented(self, x, drawn):
        x = self.torch.where(self.torch.tensor(np.asarray(drawn.flip))[:, None, None, None], x.flip(3), x)
        left, top, wide, high = self.tensor(drawn.box).unbind(1)
        theta = self.torch.zeros(len(x), 2, 3, dtype=self.torch.float64)
        theta[:, 0, 0], theta[:, 1, 1] = wide, high
        theta[:, 0, 2], theta[:, 1, 2] = 2 * left + wide - 1, 2 * top + high - 1
        grid = self.functional.affine_grid(theta, x.shape, align_corners=False)
        x = self.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return x + self.tensor(drawn.noise).permute(0, 3, 1, 2)

    def encoded(self, x):
        x = (x - self.tensor(MEAN)[None, :, None, None]) / self.tensor(DEVIATION)[None, :, None, None]
        hidden = self.functional.conv2d(x, self.tensor(KERNEL).permute(3, 2, 0, 1), padding=1)
        return self.torch.tanh(hidden).permute(0, 2, 3, 1).flatten(1) @ self.tensor(WEIGHTS)

    def loss(self, levels, real, head, draws):
        """Loss of the levels; `real` are pixels and classes, `draws` those of the real and of the distilled images."""
        linear = self.tensor(head.T).requires_grad_(), self.tensor(np.zeros(CLASSES)).requires_grad_()

        def in_head(features, labels, **options):
            scores = self.functional.linear(features, *linear)
            entropy = self.functional.cross_entropy(scores, self.torch.tensor(labels).long())
            return self.torch.cat([g.flatten() for g in self.torch.autograd.grad(entropy, linear, **options)])

        pixels = self.tensor(real[0]).permute(0, 3, 1, 2) / 255
        aim = in_head(self.encoded(self.augmented(pixels, draws[0])), real[1])
        copies = self.augmented(self.decoded(levels).repeat(COPIES, 1, 1, 1), draws[1])
        found = in_head(self.encoded(copies), OWN, create_graph=True)
        return 1 - self.functional.cosine_similarity(aim, found, dim=0)


@pytest.mark.medium
def test_steps_equal_torch():
    """Loss and gradients of all levels, over steps in which a level joins and Adam begins anew, and one after them."""
    torch = pytest.importorskip("torch")
    chosen = configuration.edit(configuration.default(), "lgm")
    chosen.storage.N, chosen.encoder.copies, chosen.encoder.extend_every, chosen.distill.steps = COUNT, COPIES, 1, 20
    built = method.make_lgm(chosen, Problem((HEIGHT, WIDTH, 3), DIM, TRAINING, CLASSES, network=True))
    published = Torch(torch)
    with jax.enable_x64(True):
        data, step = source(), jax.jit(built.step)
        state = built.init(jax.random.key(5), data)
        for number in range(LEVELS + 3):
            after, info = step(state, data)
            # What the step has drawn: real images, a new level, the head, and both augmentations.
            key = jax.random.fold_in(state.key, number)
            rows = np.asarray(jax.random.randint(jax.random.fold_in(key, 0), (COPIES * COUNT,), 0, TRAINING))
            count, before = (min(1 + max(one - 1, 0), LEVELS) for one in (number, number - 1))
            levels, joined = state.levels, count > before
            if joined:
                levels = pyramid.extend(jax.random.fold_in(key, 1), levels, jnp.int32(before))
            of_head, *of_draws = jax.random.split(jax.random.fold_in(key, 2), 3)
            head = np.asarray(objectives.random_head(of_head, DIM, CLASSES))
            draws = [distortions.draw(one, (COPIES * COUNT, HEIGHT, WIDTH, 3)) for one in of_draws]
            pieces = [published.tensor(level).permute(0, 3, 1, 2).requires_grad_() for level in levels]
            expected = published.loss(pieces[:count], (IMAGES[rows], LABELS[rows]), head, draws)
            expected.backward()
            assert float(info.levels) == count
            assert float(info.loss) == pytest.approx(expected.item(), rel=1e-6)
            for i, piece in enumerate(pieces):
                # Adam's first moment is a tenth of the gradient and nine of the moment before, which a new level ends.
                kept = 0 if joined else 0.9 * np.asarray(state.opt_state[0].mu[i])
                gradient = (np.asarray(after.opt_state[0].mu[i]) - kept) / 0.1
                if piece.grad is None:
                    assert i >= count and not gradient.any()
                    continue
                wanted = piece.grad.permute(0, 2, 3, 1).numpy()
                assert np.linalg.norm(gradient - wanted) < 1e-6 * np.linalg.norm(wanted), (number, i)
            state = after
