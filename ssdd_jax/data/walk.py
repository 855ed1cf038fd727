"""List the files below a folder: symbolic links are followed, and every real file is listed once."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from ssdd_jax.errors import UserError


class Files(NamedTuple):
    """Files below a folder.

    Attributes:
        root: The folder.
        paths: The selected files, sorted by path; those in hidden folders are left out.
        real: Their real paths, without symbolic links.
        repeated: Number of links that lead to files or folders which are listed already.
        others: Number of files that were not selected, by extension or name, most frequent first.
    """

    root: pathlib.Path
    paths: list[pathlib.Path]
    real: set[str]
    repeated: int
    others: dict[str, int]


class _Walk:
    """State of a walk: real folders and files that were met, links that wait for their turn."""

    def __init__(self, root: pathlib.Path, select: Callable[[str], bool]):
        self.start, self.select = os.path.realpath(root), select
        self.folders, self.files = {self.start}, dict[str, str]()
        self.linked_folders, self.linked_files = list[tuple[str, str]](), list[tuple[str, str]]()
        self.others, self.repeated = collections.Counter[str](), 0
        # What is there by itself comes first, then what links add, in the order of their paths: no result depends on
        # the order in which the system lists a folder.
        self._descend(str(root), self.start)
        while self.linked_folders:
            self.linked_folders.sort(reverse=True)
            path, real = self.linked_folders.pop()
            if real in self.folders:
                self.repeated += 1
                continue
            self.folders.add(real)
            self._descend(path, real)
        for path, real in sorted(self.linked_files):
            self.repeated += real in self.files
            self.files.setdefault(real, path)

    def _descend(self, path: str, real: str) -> None:
        pending = [(path, real)]
        while pending:
            folder, real_folder = pending.pop()
            for entry in _entries(folder):
                place = os.path.join(real_folder, entry.name)
                linked = entry.is_symlink()
                target = os.path.realpath(entry.path) if linked else place
                if not _is_folder(entry):
                    if self.select(entry.name) and _is_special(entry):
                        raise UserError(f"{entry.path} is a device or a pipe, not a file: remove it")
                    self._add_file(entry.name, entry.path, target, linked)
                elif not entry.name.startswith("."):
                    # A link to a folder around it, or around the root, would read what is beside it too.
                    around = any(_holds(target, inner) for inner in (real_folder, self.start)) if linked else False
                    if around or (not linked and target in self.folders):
                        self.repeated += 1
                    elif linked:
                        self.linked_folders.append((entry.path, target))
                    else:
                        self.folders.add(target)
                        pending.append((entry.path, target))

    def _add_file(self, name: str, path: str, real: str, linked: bool) -> None:
        if name.startswith(".") or not self.select(name):
            self.others[pathlib.PurePath(name).suffix.lower() or name] += 1
        elif linked:
            self.linked_files.append((path, real))
        else:
            self.files[real] = path


def files_below(root: pathlib.Path, select: Callable[[str], bool]) -> Files:
    """List the files below a folder at any depth, each real file once.

    Links to folders and files are followed, but not to folders that hold the link or the root. A file that is there by
    itself takes precedence over links to it.

    Args:
        root: The folder.
        select: Whether to list a file of this name.

    Returns:
        The files.

    Raises:
        UserError: If a folder cannot be read.
    """
    walk = _Walk(root, select)
    paths = sorted(pathlib.Path(path) for path in walk.files.values())
    return Files(root, paths, set(walk.files), walk.repeated, dict(walk.others.most_common()))


def subfolders(path: pathlib.Path, *, links: bool) -> list[str]:
    """List the names of the subfolders of a folder, sorted, without hidden ones.

    Args:
        path: The folder.
        links: Whether to list links to folders too.

    Returns:
        The names.

    Raises:
        UserError: If the folder cannot be read.
    """
    entries = [entry for entry in _entries(str(path)) if _is_folder(entry) and (links or not entry.is_symlink())]
    return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; change its permissions, or move it") from None


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return whether reading the entry may never end."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:  # told when it is read
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `DirEntry.is_dir` raises an error for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _holds(folder: str, other: str) -> bool:
    """Return whether a real folder is another one, or one of its parents."""
    return other == folder or other.startswith(os.path.join(folder, ""))
