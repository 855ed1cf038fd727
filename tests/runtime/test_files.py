"""Files of JSON lines."""

import json

import pytest

from ssdd_jax.runtime import files


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ([1, 2, 3], [1, 2]),
        ([1, 2], [1, 2]),
        ([3, 4], []),
        ([], []),
        ([1, 3, "other", 4, '{"step": 2, "st'], [1, "other"]),
        ([1, "torn", 3, "torn"], [1]),
        (["torn", 1, 2], ["torn", 1, 2]),
    ],
)
def test_lines_are_cut_from_the_end(content, left, tmp_path):
    """Those of steps up to 2 stay, and what is no step."""
    path = tmp_path / "lines"
    texts = {"other": '{"other": 1}', "torn": '{"st'}
    full = [texts.get(item, item) if isinstance(item, str) else json.dumps({"step": item}) for item in content]
    path.write_text("\n".join(full))
    files.cut_json_lines(path, stop=lambda line: line.get("step", 9) <= 2, drop=lambda line: "step" in line)
    wanted = [texts[item] if isinstance(item, str) else json.dumps({"step": item}) for item in left]
    assert path.read_text().split() == "\n".join(wanted).split()
    files.cut_json_lines(tmp_path / "missing", stop=bool, drop=bool)
