"""Seeds beyond 32 bits, and paths from the home directory, in every call."""

import numpy as np
import pytest
from helpers import bytes_and_features

import ssdd_jax
from ssdd_jax import config as configuration
from ssdd_jax import export
from ssdd_jax.errors import UserError

IMAGES, FEATURES = bytes_and_features(30)


def made(**options):
    return ssdd_jax.distill(IMAGES, FEATURES, N=10, method="random", say=lambda line: None, **options)


@pytest.mark.parametrize("seed", [2**32, 2**40 + 7, 2**63, 20261126001, -1, np.uint64(2**63)])
def test_seeds_that_jax_would_cut(seed):
    """`jax.random.key` takes the lower 32 bits, and two seeds of a study would give one run."""
    with pytest.raises(UserError, match=r"config\.seed=.* must be between 0 and 4294967295"):
        made(seed=seed)
    with pytest.raises(UserError, match=r"^seed=.* must be a whole number between 0 and 4294967295"):
        ssdd_jax.train(made(), "convnet_4_bn", seed=seed)
    chosen = configuration.default()
    if seed in (2**32, -1):
        chosen.teacher.seed = seed
        with pytest.raises(UserError, match=r"config\.teacher\.seed=.* must be between 0 and"):
            configuration.validate(chosen)


def test_a_seed_that_is_no_whole_number():
    with pytest.raises(UserError, match=r"seed=1\.5 is not an int"):
        made(seed=1.5)
    with pytest.raises(UserError, match=r"^seed=1\.5 is out of range: it must be a whole number"):
        ssdd_jax.train(made(), "convnet_4_bn", seed=1.5)


def test_the_largest_seeds_differ():
    one, two = (np.asarray(made(seed=seed).images()) for seed in (2**32 - 1, 2**31 - 1))
    assert (one != two).any()


def test_a_set_is_saved_and_loaded_at_home(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    made().save("~/set")
    assert (home / "set" / "set.json").is_file() and not list(here.iterdir())
    assert ssdd_jax.load("~/set").numbers_stored() == made().numbers_stored()
    assert export.main(["--set=~/set", "--form=npz", "--out=~/exported"]) == 0
    assert (home / "exported" / "pairs.npz").is_file() and not list(here.iterdir())
