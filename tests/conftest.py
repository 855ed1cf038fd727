"""Strict settings for every test: two virtual CPU devices, no silent broadcasting, no silent promotion."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("SSDD_TEST_PLATFORM", "cpu")
# Most of a test's time is spent compiling. LLVM's optimization passes and XLA's fusion emitters change speed and last
# digits, nothing that a test may rest on. Threads that compile and compute stand in the way of the test beside it.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false",
        # Later versions have no such flag, and refuse it.
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("MPLBACKEND", "Agg")
# Their threads stand in the way of XLA's, and of those of a test beside it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# One compilation cache for the session: its pytest-xdist workers and the processes that tests start inherit it. Several
# sessions share the one that SSDD_TEST_CACHE names.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = os.environ.get("SSDD_TEST_CACHE", "")
    if not _cache:
        _cache = tempfile.mkdtemp(prefix="ssdd_jax_compiled_")
        atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import gc
import pathlib

import jax
import numpy as np
import pytest

# Tracing makes many objects that live; looking through all of them takes a twentieth of the time.
gc.set_threshold(50_000, 10, 10)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The files that take longest, which are run first, so that no pytest-xdist worker begins one when the other has ended.
# `--no-loadscope-reorder` in pyproject.toml keeps this order.
LONGEST = (
    *("test_notebooks", "test_devices", "test_processes", "test_systems", "test_compare", "test_pipeline"),
    *("test_streaming", "test_dry_run", "test_outside_method", "test_evaluate", "test_main", "test_precision"),
    *("test_methods", "test_architectures", "test_loop", "test_inversion", "test_benchmark", "test_teacher"),
)
FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Begin with the longest files, and mark as quick what is not marked as slower."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    for item in items:
        if not (item.get_closest_marker("slow") or item.get_closest_marker("medium")):
            item.add_marker(pytest.mark.quick)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A temporary folder that all pytest-xdist workers of the session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def fixture_arrays():
    """Arrays of a stored fixture by name: `fixture_arrays("krr_st")`."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load
