"""The exported pairs in an environment that has only PyTorch and safetensors, as the guide says."""

import re
import subprocess
import venv
from importlib import metadata

import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, bytes_and_features
from tiny_runs import ROOT, TIMEOUT

from ssdd_jax import formats

GUIDE = ROOT / "docs" / "guides" / "sharing.md"


def libraries(names):
    """Distributions with these names, and what they need themselves."""
    found, remaining = {}, list(names)
    while remaining:
        name = re.match(r"[\w.-]+", remaining.pop())[0].lower().replace("_", "-")
        try:
            library = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform
            continue
        if name not in found:
            found[name] = library
            remaining += [text for text in library.requires or () if "extra ==" not in text]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A virtual environment with links to nothing but PyTorch, safetensors and what these need; its interpreter."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, system_site_packages=False)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    for library in libraries(("torch", "safetensors")).values():
        for name in {file.parts[0] for file in library.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = library.locate_file(name)
            if not (packages / name).exists() and source.exists():
                (packages / name).symlink_to(source)
    return folder / "bin" / "python"


def run(python, folder, script):
    line = [python, "-I", "-W", "ignore", "-c", script]  # isolated: no variable of the environment adds a path
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.mark.slow
def test_the_guide_needs_no_jax(bare, tmp_path):
    images, features = bytes_and_features(6)
    np.savez(tmp_path / "set.npz", images=images, targets=features)
    formats.write(formats.read(tmp_path / "set.npz"), tmp_path / "pairs", "safetensors")
    (tmp_path / "pixels.bin").write_bytes(images.transpose(0, 3, 1, 2).tobytes())
    section = GUIDE.read_text().partition("## PyTorch without JAX")[2].partition("\n## ")[0]
    first, training, testing = re.findall(r"```python\n(.*?)```", section, re.S)
    # The whole data set is one line beside the imports.
    assert len([line for line in first.splitlines() if line and not line.startswith("from ")]) == 1
    shape = f"(6, {CHANNELS}, {SIZE}, {SIZE})"
    script = f"""
import importlib.util
for name in ("jax", "ssdd_jax", "datasets", "flax"):
    assert importlib.util.find_spec(name) is None, name
{first}
{training.replace("range(500)", "range(2)")}
pixels = torch.frombuffer(bytearray(open("pixels.bin", "rb").read()), dtype=torch.uint8).reshape{shape}
{testing}
restored = dataset.tensors[0] * std + mean
assert torch.allclose(restored * 255, pixels.float(), atol=1e-3), (restored * 255 - pixels).abs().max()
raw = dataset.tensors[1] * constants["target_scale"] + constants["target_mean"]
print(len(dataset), tuple(dataset[0][0].shape), tuple(features.shape), loss.isfinite().item(), raw.sum().item())
"""
    done = run(bare, tmp_path, script)
    assert done.returncode == 0, done.stderr
    words, total = done.stdout.strip().rsplit(" ", 1)
    assert words == f"6 ({CHANNELS}, {SIZE}, {SIZE}) (6, 1024) True" and len(features[0]) == DIM
    assert float(total) == pytest.approx(features.sum(), rel=1e-4)
