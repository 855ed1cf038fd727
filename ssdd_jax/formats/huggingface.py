"""Pairs as a folder that `datasets.load_dataset` reads and that can be uploaded to the Hugging Face hub unchanged."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.formats import card, constants, safe_tensors
from ssdd_jax.formats.content import Content, check_inputs, check_targets, require
from ssdd_jax.formats.pictures import encode

UNDO = (
    "pixel_values is what a network is given, (H,W,C), and target what it regresses: pixels in 0..1 are pixel_values * "
    "image_std + image_mean per channel, the teacher's features target * target_scale + target_mean."
)
# The hub's naming convention, from which it infers the split.
_SHARD = "data/train-00000-of-00001.parquet"
_COLUMNS = ("pixel_values", "target")


def is_folder(path: pathlib.Path) -> bool:
    """Return whether a folder has parquet files under `data/`."""
    return any((path / "data").glob("*.parquet"))


def read(path: pathlib.Path) -> Content:
    """Read the columns `pixel_values` and `target` of all parquet files, in the order of their names.

    Args:
        path: The folder.

    Returns:
        The pairs and their facts.

    Raises:
        UserError: If pyarrow is missing, a file is damaged, or a column is missing or has another shape or type.
    """
    # PyArrow reads the files directly: `datasets` would first copy them to its cache.
    parquet = require("pyarrow.parquet", "huggingface", "a parquet file")
    arrow = require("pyarrow", "huggingface", "a parquet file")
    parts: list[list[np.ndarray]] = [[], []]
    for file in sorted((path / "data").glob("*.parquet")):
        try:
            table = parquet.read_table(file)
            known = table.column_names
        except (arrow.ArrowException, OSError, ValueError):  # the last for a name that is not UTF-8
            raise UserError(f"{file} is not a parquet file, or a damaged one: restore it") from None
        for name, part in zip(_COLUMNS, parts, strict=True):
            if name not in known:
                raise UserError(f"{file} has no column {name!r}: {' and '.join(_COLUMNS)} are needed")
            part.append(_array(f"{name} in {file}", table.column(name).combine_chunks(), arrow))
    # Files from elsewhere may hold lists without a fixed size: each file is regular, but all must agree.
    shapes = [{array.shape[1:] for array in part} for part in parts]
    if any(len(shape) > 1 for shape in shapes):
        raise UserError(f"the parquet files in {path / 'data'} differ in shape: bring all rows to one")
    images, targets = (np.concatenate(part) for part in parts)
    return Content(
        check_inputs(f"pixel_values in {path}", images),
        check_targets(f"target in {path}", targets),
        constants.read(path),
    )


def write(folder: pathlib.Path, content: Content, pixels: np.ndarray, names: list[str]) -> None:
    """Write one parquet file, the pairs for PyTorch, and a card.

    Args:
        folder: Folder to write to.
        content: The pairs and their facts.
        pixels: uint8 `(P,H,W,C)`.
        names: File names of the images.

    Raises:
        UserError: If the library `datasets` is not installed.
    """
    datasets = require("datasets", "huggingface", "the form huggingface")
    # Fixed sizes in the schema let `with_format("numpy")` return arrays instead of nested lists.
    shape, dim = content.images.shape[1:], content.targets.shape[1]
    columns = {
        "image": datasets.Image(),
        "pixel_values": datasets.Array3D(shape, "float32"),
        "target": datasets.List(datasets.Value("float32"), length=dim),
    }
    pictures = [{"bytes": encode(p), "path": name} for p, name in zip(pixels, names, strict=True)]
    rows = {"image": pictures, "pixel_values": content.images, "target": content.targets}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    (folder / _SHARD).parent.mkdir()
    # The progress bar of one short write is noise; the setting is global, so it is restored.
    bars_enabled = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table.to_parquet(folder / _SHARD)
    finally:
        if bars_enabled:
            datasets.enable_progress_bars()
    safe_tensors.write(folder, content)
    card.write(folder, content.facts, UNDO)


def _array(where: str, column: Any, arrow: Any) -> np.ndarray:
    """Convert nested lists, with one length at each depth, to one array `(n,...)`."""
    shape = [len(column)]
    # Each pass unwraps one level of lists: extension arrays (such as `Array3D`) first, then lists of any kind.
    while True:
        column = column.storage if isinstance(column, arrow.ExtensionArray) else column
        if column.null_count:
            raise UserError(f"{where} has empty cells: every row needs numbers")
        if not isinstance(column, (arrow.ListArray, arrow.LargeListArray, arrow.FixedSizeListArray)):
            break
        fixed = isinstance(column, arrow.FixedSizeListArray)
        lengths = [column.type.list_size] if fixed else column.value_lengths().unique().to_pylist()
        if len(lengths) != 1:
            raise UserError(f"{where} has rows of different sizes, or none: bring all to one")
        shape.append(lengths[0])
        column = column.flatten()
    if not (arrow.types.is_floating(column.type) or arrow.types.is_integer(column.type)):
        raise UserError(f"{where} holds {column.type}: floats are needed")
    return column.to_numpy(zero_copy_only=False).reshape(shape)
