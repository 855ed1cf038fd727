"""Sets on the Hugging Face hub: a local server speaks its protocol, as nothing here may need a network."""

import errno
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
from helpers import bytes_and_features
from hub_server import Hub

import ssdd_jax
from ssdd_jax import export, formats
from ssdd_jax.errors import UserError
from ssdd_jax.formats import hub as hub_of_sets

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
pytest.importorskip("datasets", reason="the extra hub is not installed")

# Of the library's own way to upload.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
FILES = {
    *("README.md", "constants.json", "set.json", "set.safetensors", "pairs.safetensors"),
    "data/train-00000-of-00001.parquet",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and a user who is logged in to it."""
    from huggingface_hub import constants

    with Hub().running() as server:
        # The library reads its environment once, when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "".join(template[1:]))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        huggingface_hub.utils.disable_progress_bars()
        yield server
        huggingface_hub.utils.enable_progress_bars()


@pytest.fixture
def archive(tmp_path):
    images, features = bytes_and_features(5)
    np.savez(tmp_path / "pairs.npz", images=images, targets=features)
    return tmp_path / "pairs.npz"


def same(first, second):
    for one, other in zip(first.pairs(), second.pairs(), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in first.preprocessing._asdict().items():
        np.testing.assert_array_equal(getattr(second.preprocessing, name), value)


def refusal(capsys, *line):
    assert export.main(list(line)) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    return err


@pytest.mark.medium
def test_a_run_is_uploaded_and_loaded(hub, session_folder, capsys):
    """With its numbers on the card, and as it was, bases and all."""
    run, _ = tiny_runs.finished(session_folder)
    assert export.main([f"--set={run / 'distilled'}", "--to=hf://me/tiny", "--license=cc-by-4.0"]) == 0
    said = capsys.readouterr().out
    assert "bytes in hf://me/tiny" in said and 'ssdd_jax.load("hf://me/tiny") reads it' in said
    assert set(hub.files("me/tiny")) == FILES | {".gitattributes"} and len(hub.repositories["me/tiny"]) == 2
    loaded, original = ssdd_jax.load("hf://me/tiny"), ssdd_jax.load(run / "distilled")
    same(loaded, original)
    assert loaded.kind == original.kind == "bases" and loaded.about == original.about
    card = hub.files("me/tiny")["README.md"].decode()
    table = ssdd_jax.report.table(ssdd_jax.report.read(run).results)
    assert table in card
    for words in (
        *("license: cc-by-4.0", "- image-feature-extraction", "- n<1K", "path: data/train-*.parquet"),
        *("distilled in the storage of 4 images by Boost-SSDD", "| Method | Boost-SSDD |", "| Licence | cc-by-4.0 |"),
        *("| Teacher | features of features.npz |", "mean ± standard deviation over 2 networks: a ConvNet 4-8"),
        *("random images: the same network trained on N random images", "SGD for distilled set: 5 steps, rate 0.1"),
        *('ssdd_jax.load("hf://me/tiny")', 'hf_hub_download("me/tiny", "pairs.safetensors", repo_type="dataset")'),
        *('load_dataset("me/tiny", split="train")', "pixel_values * image_std + image_mean"),
    ):
        assert words in card, words


def test_an_upload_replaces_the_earlier_one(hub, archive, tmp_path):
    formats.upload(formats.read(archive), "hf://me/set")
    images, features = bytes_and_features(7)
    np.savez(tmp_path / "more.npz", images=images, targets=features)
    more = formats.read(tmp_path / "more.npz")
    assert formats.upload(more, "hf://me/set", licence="mit").pairs == 7
    assert set(hub.files("me/set")) == FILES | {".gitattributes"} and len(hub.repositories["me/set"]) == 3
    same(formats.read("hf://me/set"), more)
    # An earlier commit can still be named.
    from hub_server import sha

    assert len(formats.read(f"hf://me/set@{sha('me/set', 1)}").pairs()[0]) == 5


def test_other_repositories_are_not_overwritten(hub, archive, capsys):
    hub.repositories["me/photographs"] = [{"README.md": b"mine", "a.png": b"photograph"}]
    said = refusal(capsys, f"--set={archive}", "--to=hf://me/photographs")
    assert "hf://me/photographs holds other files, such as a.png, and is not overwritten: choose another name" in said
    assert hub.repositories["me/photographs"] == [{"README.md": b"mine", "a.png": b"photograph"}]


@pytest.mark.parametrize("method, path", [("POST", "preupload"), ("PUT", "objects"), ("POST", "commit")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_upload_leaves_nothing_half_done(method, path, existing, hub, archive, capsys):
    if existing:
        formats.upload(formats.read(archive), "hf://me/set")
    before = {name: list(commits) for name, commits in hub.repositories.items()}
    hub.refuse = lambda command, where: 403 if command == method and path in where else None
    said = refusal(capsys, f"--set={archive}", "--to=hf://me/set", "--license=mit")
    assert said.startswith("ssdd_jax: hf://me/set: the hub answered 403") and "log in with `hf auth login`" in said
    assert hub.repositories == before


def test_an_interrupted_upload_leaves_nothing_half_done(hub, archive, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        formats.upload(formats.read(archive), "hf://me/set")
    assert hub.repositories == {} and ("POST", "/api/repos/create") in hub.requests


def test_a_set_that_cannot_be_written_asks_the_hub_for_nothing(hub, archive, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'ssdd_jax[" in refusal(capsys, f"--set={archive}", "--to=hf://me/set")
    assert not hub.requests


def test_without_the_library(monkeypatch, archive, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    said = refusal(capsys, f"--set={archive}", "--to=hf://me/set")
    assert "an address hf:// needs huggingface_hub, which is missing: pip install 'ssdd_jax[hub]'" in said
    with pytest.raises(UserError, match="needs huggingface_hub"):
        formats.read("hf://me/set")


def test_what_is_not_there(hub, archive):
    formats.upload(formats.read(archive), "hf://me/set")
    hub.repositories["me/empty"] = [{}]
    hub.repositories["me/huge"] = [{"data/a.parquet": b"small"}]
    for address, words in (
        ("hf://me/other", "there is no data set hf://me/other, or it is private: check the name, or log in"),
        ("hf://me/set@v2", "hf://me/set has no revision 'v2'"),
        ("hf://me", "hf://me is not an address of the hub: write hf://OWNER/NAME"),
        ("hf://me/empty", "holds no distilled set"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            formats.read(address)
        assert "\n" not in str(caught.value)


def test_a_repository_that_is_no_set_is_not_downloaded(hub, monkeypatch):
    hub.repositories["me/huge"] = [{"data/a.parquet": b"large"}]
    monkeypatch.setattr(hub_of_sets, "MOST_BYTES", 4)
    with pytest.raises(UserError, match="hf://me/huge holds 0 GB, which is no distilled set"):
        formats.read("hf://me/huge")
    assert not any("a.parquet" in path for _, path in hub.requests)


def test_sets_in_other_forms(hub, archive, tmp_path):
    """A repository of a person who uploaded what another system wrote."""
    formats.write(formats.read(archive), tmp_path / "out", "safetensors")
    hub.repositories["you/pairs"] = [{file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}]
    same(formats.read("hf://you/pairs"), formats.read(archive))


def test_what_was_loaded_before_needs_no_hub(hub, archive, monkeypatch):
    formats.upload(formats.read(archive), "hf://me/set")
    formats.read("hf://me/set")
    hub.refuse = lambda command, path: 403
    same(formats.read("hf://me/set"), formats.read(archive))
    with pytest.raises(UserError, match="hf://me/new"):
        formats.read("hf://me/new")


def test_what_was_loaded_before_in_another_form_needs_no_hub(hub, archive, tmp_path):
    formats.write(formats.read(archive), tmp_path / "out", "safetensors")
    hub.repositories["you/pairs"] = [{file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}]
    formats.read("hf://you/pairs")
    hub.refuse = lambda command, path: 503
    same(formats.read("hf://you/pairs"), formats.read(archive))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "cannot write /cache/set.json: Read-only file system: set HF_HOME to a folder of your own"),
        (errno.ENOSPC, "no space left on the disk: free some, or set HF_HOME to a folder on another one"),
    ],
)
def test_a_cache_that_cannot_be_written(number, words, hub, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "/cache/set.json")

    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", fail)
    with pytest.raises(UserError, match=f"hf://me/set: {re.escape(words)}"):
        formats.read("hf://me/set")


def test_exports_what_it_downloads_here(hub, archive, tmp_path, monkeypatch, capsys):
    """Not into the cache of the library."""
    formats.upload(formats.read(archive), "hf://me/set")
    monkeypatch.chdir(tmp_path)
    assert export.main(["--set=hf://me/set", "--form=npz"]) == 0
    same(formats.read(tmp_path / "export-npz"), formats.read(archive))


@pytest.mark.parametrize(
    "line, words",
    [
        (["--to=me/set"], "me/set is not an address of the hub"),
        (["--to=hf://me/set", "--form=npz"], "--to uploads a set and takes neither --form nor --out"),
        (["--to=hf://me/set", "--license=My own"], "--license=My own is no identifier of a licence"),
        (["--form=npz", "--private"], "--private is for uploads"),
        (["--form=npz", "--license=mit"], "--license is for a card, which only uploads"),
    ],
)
def test_refuses_in_one_line(line, words, archive, hub, capsys):
    assert words in refusal(capsys, f"--set={archive}", *line)
    assert not hub.requests


# Beyond the reach of the fixture: a process of its own reads the environment, as that of a user does.
CARD = """
import sys
for block in sys.argv[1:]:
    exec(block)
print(tuple(dataset[0][0].shape), inputs.shape, targets.shape, len(dataset))
"""


@pytest.mark.slow
def test_the_card_says_how_to_load_it(hub, archive, tmp_path):
    pytest.importorskip("torch")
    formats.upload(formats.read(archive), "hf://me/set")
    blocks = re.findall(r"```python\n(.*?)```", hub.files("me/set")["README.md"].decode(), re.S)
    assert len(blocks) == 3
    blocks[0] = blocks[0].replace('student = ssdd_jax.train(distilled, "resnet18")', "")
    environment = {
        **os.environ,
        **{"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tiny_runs.ROOT), os.environ.get("PYTHONPATH")))),
    }
    line = [sys.executable, "-c", CARD, *blocks]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=tiny_runs.TIMEOUT)
    assert done.stdout == "(3, 8, 8) (5, 8, 8, 3) (5, 6) 5\n", done.stdout + done.stderr
