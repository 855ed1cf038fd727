"""The PyTorch files of published systems: read as they are, refused where they are anything else, never unpickled."""

import pickle

import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, normal
from test_formats import COUNT, NOTHING_KNOWN, Bomb, bases, equal, refused

from ssdd_jax import formats
from ssdd_jax.runtime import files


def tensors(folder, *, x=None, y=None, names=("x_syn.pt", "y_syn.pt")):
    """Two files of tensors; the default ones are a set's inputs, channels first."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.asarray(normal(0, COUNT, CHANNELS, SIZE, SIZE))) if x is None else x
    y = torch.tensor(np.asarray(normal(1, COUNT, DIM))) if y is None else y
    folder.mkdir(exist_ok=True)
    for name, value in zip(names, (x, y), strict=True):
        torch.save(value, folder / name)
    return torch, x, y


@pytest.mark.parametrize("kind", ["plain", "requires grad", "parameter", "permuted", "old file"])
def test_files_of_krr_st(tmp_path, kind):
    """As its training saves them: network inputs as they are, nothing known besides."""
    torch, x, y = tensors(tmp_path)
    if kind == "requires grad":
        torch.save(x.clone().requires_grad_(True), tmp_path / "x_syn.pt")
    if kind == "parameter":
        torch.save(torch.nn.Parameter(x), tmp_path / "x_syn.pt")
    if kind == "permuted":
        torch.save(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), tmp_path / "x_syn.pt")
    if kind == "old file":
        torch.save(x, tmp_path / "x_syn.pt", _use_new_zipfile_serialization=False)
    found = formats.read(tmp_path)
    equal(found.pairs(), (x.numpy().transpose(0, 2, 3, 1), y.numpy()))
    assert found.about == {"method": "imported", "from": "krr_st"} and found.statics == {}
    assert [value.tolist() for value in found.preprocessing] == list(NOTHING_KNOWN)
    assert found.numbers_stored() == x.numel() + y.numel()


def test_krr_st_may_be_given_constants(tmp_path):
    _, x, _ = tensors(tmp_path)
    files.write_json(tmp_path / "constants.json", {"image_mean": 0.5, "image_std": [0.1, 0.2, 0.4], "method": "krr_st"})
    found = formats.read(tmp_path)
    assert found.preprocessing.image_mean.tolist() == [0.5] * 3 and found.about["method"] == "krr_st"
    expected = np.clip(x.numpy().transpose(0, 2, 3, 1) * np.float32([0.1, 0.2, 0.4]) + np.float32(0.5), 0, 1)
    np.testing.assert_allclose(found.images(), expected, atol=1e-6)


def test_the_published_code_can_read_what_is_written(tmp_path):
    """As its test.py does: plain contiguous float32 tensors, channels first."""
    torch = pytest.importorskip("torch")
    formats.write(bases(), tmp_path, "krr_st")
    for name, shape in (("x_syn.pt", (10, CHANNELS, SIZE, SIZE)), ("y_syn.pt", (10, DIM))):
        tensor = torch.load(tmp_path / name, map_location="cpu", weights_only=True)
        assert type(tensor) is torch.Tensor and tensor.shape == shape and tensor.dtype == torch.float32
        assert tensor.is_contiguous() and not tensor.requires_grad


def test_files_of_mkdt(tmp_path):
    """The last iteration that is whole, by number and not by name, with its learned rate."""
    names = ("images_{}.pt", "labels_{}.pt")
    for step, seed in ((1, 3), (200, 4), (1000, 5)):
        torch, _, _ = tensors(tmp_path, names=[name.format(step) for name in names])
        x = torch.tensor(np.asarray(normal(seed, COUNT, CHANNELS, SIZE, SIZE)), requires_grad=True)
        torch.save(x, tmp_path / f"images_{step}.pt")
        torch.save(torch.tensor(step / 8192, requires_grad=True), tmp_path / f"synlr_{step}.pt")
    torch.save(x, tmp_path / "images_5000.pt")
    found = formats.read(tmp_path)
    equal(found.pairs()[:1], [normal(5, COUNT, CHANNELS, SIZE, SIZE).transpose(0, 2, 3, 1)])
    assert found.statics == {"learning_rate": 1000 / 8192} and found.about["from"] == "mkdt"
    (tmp_path / "synlr_1000.pt").unlink()
    assert formats.read(tmp_path).statics == {}
    torch.save(torch.tensor(-1.0), tmp_path / "synlr_1000.pt")
    refused("synlr_1000.pt holds no learning rate", tmp_path)
    (tmp_path / "labels_1000.pt").unlink()
    assert formats.read(tmp_path).statics == {"learning_rate": 200 / 8192}
    for file in tmp_path.glob("labels_*.pt"):
        file.unlink()
    refused("holds no images_N.pt and labels_N.pt of the same N", tmp_path)


TENSORS = {
    "integer labels": (lambda t: {"y": t.arange(COUNT)}, "y_syn.pt holds int64, apparently labels: target features"),
    "labels as floats": (lambda t: {"y": t.arange(COUNT).float()}, r"y_syn.pt has the shape \(6,\): target features"),
    "channels last": (lambda t: {"x": t.zeros(COUNT, 8, 8, 3)}, r"channels last: save it as \(P,C,H,W\), transposed"),
    "two axes": (lambda t: {"x": t.zeros(COUNT, 64)}, r"x_syn.pt has the shape \(6, 64\): \(P,C,H,W\) with 1 or 3"),
    "five channels": (lambda t: {"x": t.zeros(COUNT, 5, 8, 8)}, "with 1 or 3 channels is needed"),
    "no pairs": (lambda t: {"x": t.zeros(0, 3, 8, 8), "y": t.zeros(0, 2)}, r"has the shape \(0, 3, 8, 8\)"),
    "bytes": (lambda t: {"x": t.zeros(COUNT, 3, 8, 8, dtype=t.uint8)}, "holds uint8: network inputs as floats"),
    "complex": (lambda t: {"x": t.zeros(COUNT, 3, 8, 8, dtype=t.complex64)}, "holds complex64: network inputs as"),
    "other count": (lambda t: {"y": t.zeros(5, DIM)}, "holds 6 images and 5 targets: one target each is needed"),
    "not finite": (lambda t: {"y": t.full((COUNT, DIM), t.inf)}, "y_syn.pt holds values that are not finite"),
    "too large": (lambda t: {"y": t.full((COUNT, DIM), 1e300, dtype=t.float64)}, "not finite in float32"),
    "a dictionary": (lambda t: {"x": {"x": t.zeros(1)}}, "x_syn.pt is not a file of one plain tensor"),
    "sparse": (lambda t: {"y": t.zeros(COUNT, DIM).to_sparse()}, "y_syn.pt is not a file of one plain tensor"),
    "a pickle": (lambda t: {"x": Bomb()}, "x_syn.pt is not a file of one plain tensor, .*never loaded"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(tmp_path, case):
    torch = pytest.importorskip("torch")
    changes, words = TENSORS[case]
    tensors(tmp_path, **changes(torch))
    refused(words, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tensor", pickle.dumps(Bomb())])
def test_files_that_hold_no_tensor(tmp_path, content):
    tensors(tmp_path)
    (tmp_path / "x_syn.pt").write_bytes(content)
    refused("x_syn.pt is not a file of one plain tensor", tmp_path)


def test_half_a_set_and_cut_files_are_refused(tmp_path):
    tensors(tmp_path)
    content = (tmp_path / "x_syn.pt").read_bytes()
    (tmp_path / "x_syn.pt").write_bytes(content[: len(content) // 2])
    refused("x_syn.pt is not a file of one plain tensor, or is damaged", tmp_path)
    (tmp_path / "x_syn.pt").unlink()
    refused("holds no x_syn.pt: a set of KRR-ST is x_syn.pt and y_syn.pt", tmp_path)
