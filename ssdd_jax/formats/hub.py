"""Sets in data set repositories of the Hugging Face hub: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION`.

The repository of a set holds the set as this package stores it, the pairs for `datasets` and for PyTorch, and a card.
`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and the cache are those of `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from ssdd_jax import distilled as sets
from ssdd_jax.errors import UserError
from ssdd_jax.formats import card, constants, huggingface, safe_tensors, writing
from ssdd_jax.formats.content import require
from ssdd_jax.runtime import files
from ssdd_jax.runtime.version import __version__

# `pathlib` makes one slash of two.
_ADDRESS = re.compile(r"hf:/{1,2}(?:datasets/)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
# Files of a set in the form of this package, of an uploaded set besides, and of the forms of other systems.
_OWN = [sets.DESCRIPTION, sets.TENSORS]
_OTHERS = ["*.json", "data/*.parquet", "pairs.*", "*.pt", "features.np[yz]", "*.png"]
_UPLOADED = [*_OWN, card.NAME, constants.NAME, safe_tensors.NAME, "data/*.parquet"]
# What a repository may hold before the first upload.
_INITIAL = {".gitattributes", card.NAME}
MOST_BYTES = 4e9


class Address(NamedTuple):
    """Address of a repository: `OWNER/NAME`, and the branch, tag or commit, None for the newest."""

    repository: str
    revision: str | None = None


class Upload(NamedTuple):
    """Summary of an upload: the address, the number of pairs, and the size of all files in bytes."""

    address: str
    pairs: int
    size: int


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is an address of the hub."""
    return str(path).startswith("hf:/")


def parse(path: str | os.PathLike[str]) -> Address:
    """Parse an address.

    Raises:
        UserError: If it is not of the form `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`.
    """
    match = _ADDRESS.fullmatch(str(path))
    if match is None:
        raise UserError(f"{path} is not an address of the hub: write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    return Address(match["repository"], match["revision"])


def download(path: str | os.PathLike[str]) -> pathlib.Path:
    """Download a set; files that were downloaded before are taken from the cache, also without a network.

    Args:
        path: The address.

    Returns:
        The folder of the downloaded files.

    Raises:
        UserError: If there is no such repository, it holds no set or too much for one, access is refused, or the hub
            cannot be reached.
    """
    address = parse(path)
    with _reporting(address):
        options = {"repo_type": "dataset", "revision": address.revision}
        api = _api()
        # The package's own form first: it is small and exact.
        folder = pathlib.Path(api.snapshot_download(address.repository, allow_patterns=_OWN, **options))
        if not (folder / sets.DESCRIPTION).is_file():
            folder = _download_others(api, address, options)
    return folder


def _download_others(api: Any, address: Address, options: dict[str, Any]) -> pathlib.Path:
    """Download a set in another form than the package's own, if it is small enough to be one."""
    try:
        info = api.repo_info(address.repository, files_metadata=True, **options)
    except OSError:
        # Without the hub there is what was downloaded before, whose size was checked then.
        chosen = {"allow_patterns": _OTHERS, "local_files_only": True, **options}
        folder = pathlib.Path(api.snapshot_download(address.repository, **chosen))
        if not any(file.is_file() for file in folder.rglob("*")):
            raise
        return folder
    size = sum(file.size or 0 for file in info.siblings or ())
    if size > MOST_BYTES:
        raise UserError(
            f"hf://{address.repository} holds {size / 1e9:.0f} GB, which is no distilled set: check the name"
        )
    return pathlib.Path(api.snapshot_download(address.repository, allow_patterns=_OTHERS, **options))


def upload(
    distilled: sets.DistilledSet,
    path: str | os.PathLike[str],
    *,
    licence: str = card.UNKNOWN,
    private: bool = False,
    evaluation: card.Evaluation = card.Evaluation(),
) -> Upload:
    """Upload a set to a data set repository, which is created if it does not exist.

    All files appear in one commit. If the upload fails, an existing repository stays as it was, and one that was
    created for the set is deleted again.

    Args:
        distilled: The set.
        path: The address. A repository that holds anything but an uploaded set is refused.
        licence: The hub's identifier of the licence of the set, such as `cc-by-4.0`.
        private: Whether a new repository is private.
        evaluation: Name of the method and results, for the card.

    Returns:
        A summary of the upload.

    Raises:
        UserError: If the address is invalid, the repository holds other files, access is refused, the hub cannot be
            reached, or a library is missing.
    """
    address = parse(path)
    card.check_licence(licence)
    with _reporting(address):
        api = _api()
    with tempfile.TemporaryDirectory() as temporary:
        # Everything that may fail because of the set fails before the hub is asked for anything.
        folder = pathlib.Path(temporary) / "set"
        summary = build(distilled, folder, repository=address.repository, licence=licence, evaluation=evaluation)
        with _reporting(address):
            created = not api.repo_exists(address.repository, repo_type="dataset")
            if created:
                api.create_repo(address.repository, repo_type="dataset", private=private)
            else:
                _check_place(api, address)
            with _undone(api, address, created=created):
                api.upload_folder(
                    repo_id=address.repository,
                    repo_type="dataset",
                    folder_path=folder,
                    revision=address.revision,
                    commit_message=f"Upload a distilled set with ssdd_jax {__version__}",
                    delete_patterns=_UPLOADED,
                )
    return summary


def build(
    distilled: sets.DistilledSet,
    folder: pathlib.Path,
    *,
    repository: str,
    licence: str = card.UNKNOWN,
    evaluation: card.Evaluation = card.Evaluation(),
) -> Upload:
    """Write the files of a repository: the pairs, the set in the form of this package, and the card.

    Args:
        distilled: The set.
        folder: A new folder.
        repository: `OWNER/NAME`.
        licence: The hub's identifier of the licence of the set.
        evaluation: Name of the method and results, for the card.

    Returns:
        A summary of the folder, as if it were uploaded.

    Raises:
        UserError: If the library `datasets` is missing, or the set has values that are not finite.
    """
    summary = writing.write(distilled, folder, "huggingface")
    distilled.save(folder)
    facts = constants.read(folder)
    card.write(folder, facts, huggingface.UNDO, repository=repository, licence=licence, evaluation=evaluation)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Upload(f"hf://{repository}", summary.pairs, size)


def _check_place(api: Any, address: Address) -> None:
    """Refuse a repository that holds anything but a set that was uploaded before."""
    names = set(api.list_repo_files(address.repository, repo_type="dataset", revision=address.revision))
    if names - _INITIAL and not {constants.NAME, sets.DESCRIPTION} <= names:
        raise UserError(
            f"hf://{address.repository} holds other files, such as {min(names - _INITIAL)}, and is not overwritten: "
            "choose another name"
        )


@contextlib.contextmanager
def _undone(api: Any, address: Address, *, created: bool) -> Iterator[None]:
    """Delete a repository that was created for an upload which fails or is interrupted."""
    try:
        yield
    except BaseException:
        if created:
            # The first error is the one to report.
            with contextlib.suppress(Exception):
                api.delete_repo(address.repository, repo_type="dataset", missing_ok=True)
        raise


def _api() -> Any:
    hub = require("huggingface_hub", "hub", "an address hf://")
    return hub.HfApi(library_name="ssdd_jax", library_version=__version__)


@contextlib.contextmanager
def _reporting(address: Address) -> Iterator[None]:
    """Turn errors of the hub and of the network into one line that says what to do."""
    errors = require("huggingface_hub.errors", "hub", "an address hf://")
    try:
        yield
    except UserError:
        raise
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        # The threads that upload large files wrap their errors.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise UserError(_explain(errors, address, cause)) from None


def _explain(errors: Any, address: Address, error: BaseException) -> str:
    """Say what is wrong and what to do; the hub's own errors are HTTP errors, and these are OSErrors."""
    name = f"hf://{address.repository}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {address.revision!r}: check the branch, tag or commit"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: ask for access on its page, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no data set {name}, or it is private: check the name, or log in with `hf auth login`"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        advice = "log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else "try again later"
        return f"{name}: the hub answered {status} ({_first_line(error)}): {advice}"
    if files.is_full_disk(error):
        return f"{name}: no space left on the disk: free some, or set HF_HOME to a folder on another one"
    if isinstance(error, OSError) and error.errno in files.UNUSABLE:
        return f"{name}: cannot write {error.filename}: {error.strerror}: set HF_HOME to a folder of your own"
    if isinstance(error, errors.HTTPError | OSError):
        advice = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        return f"{name}: the hub cannot be reached ({_first_line(error)}): {advice}"
    return f"{name}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
