"""configs/folder.py: a folder of photographs of any sizes, looked at and distilled."""

import json

import numpy as np
import pytest
from PIL import Image

from ssdd_jax import config, main, methods
from ssdd_jax.api import photos
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.data import folder
from ssdd_jax.errors import UserError


def survey(count=300, median=200, test=0, classes=0):
    return folder.Survey("photos", count, test, classes, (median // 2, median, 2 * median), {})


def write(path, count, *, least=30, seed=0):
    """Photographs of any size and mode, with other files beside them."""
    path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        size = generator.integers(least, 3 * least, 2)
        image = Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8))
        image.convert(("RGB", "RGBA", "L", "P")[i % 4]).save(path / f"{i:03}.png")
    (path / ".DS_Store").write_bytes(b"")
    (path / "notes.txt").write_text("")
    return path


def test_survey_looks_without_decoding(tmp_path):
    write(tmp_path / "a", 6)
    write(tmp_path / "b", 5)
    Image.new("RGB", (10, 400)).save(tmp_path / "b" / "narrow.jpg")
    (tmp_path / "b" / "zzz.png").write_bytes(b"damaged")
    found = folder.survey(tmp_path)
    assert (found.train, found.test, found.classes) == (13, 0, 2)
    assert (
        found.shorter[0] == 10
        and found.others == {".DS_Store".lower(): 2, ".txt": 2}
        or found.others
        == {
            ".DS_Store": 2,
            ".txt": 2,
        }
    )


def test_survey_knows_the_parts(tmp_path):
    write(tmp_path / "train" / "x", 4)
    write(tmp_path / "train" / "y", 4)
    write(tmp_path / "val" / "x", 2)
    found = folder.survey(tmp_path)
    assert (found.train, found.test, found.classes) == (8, 2, 2)


@pytest.mark.parametrize(
    ("argument", "path", "edition"),
    [
        ("/a/b", "/a/b", ""),
        ("/a/b,krr_st", "/a/b", "krr_st"),
        ("/a,b/c", "/a,b/c", ""),
        ("/a,b,mkdt", "/a,b", "mkdt"),
        ("/mkdt", "/mkdt", ""),
    ],
)
def test_only_an_edition_at_the_end_is_cut_off(argument, path, edition):
    folder, found = config.folder_argument(argument)
    assert (str(folder), found) == (path, edition)


def test_paths_of_home_and_relative_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert config.folder_argument("~/x")[0] == config.folder_argument("x/")[0] == tmp_path / "x"
    with pytest.raises(UserError, match="configs/folder.py:PATH"):
        config.folder_argument("")


@pytest.mark.parametrize(
    ("found", "accelerator", "side"),
    [
        (survey(300, 20), False, 16),
        (survey(300, 40), True, 32),
        (survey(50_000, 300), True, 64),
        (survey(50_000, 300), False, 32),
        (survey(300, 300), True, 32),
    ],
)
def test_resolution_by_size_number_and_machine(found, accelerator, side):
    assert photos.resolution(found, accelerator=accelerator)[0] == side


@pytest.mark.parametrize("method", list(config.EDITIONS))
@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("count", [20, 200, 3000, 60_000])
def test_what_is_chosen_can_work(method, accelerator, count):
    """It is valid, no batch is larger than the images, and the method serves the folder within its budget."""
    found = photos.choose(survey(count, classes=2), method=method, accelerator=accelerator)
    config.validate(found)
    train, side = count - round(count / 5), found.data.image_size
    assert found.teacher.batch_size <= train / 2 and found.distill.batch_size <= train
    assert found.teacher.warmup_epochs <= found.teacher.epochs
    shape = (side, side, 3)
    if method == "scdd" and 8 * found.teacher.width * found.storage.N < 1000:
        return
    asked = methods.Problem(shape, 8 * found.teacher.width, train, 2, network=True, batch_norm=True)
    assert methods.make(found, asked).samples <= train


def test_a_large_folder_on_an_accelerator_has_the_published_settings():
    published = config.default()
    found = photos.choose(survey(60_000, 40), accelerator=True)
    for key in ("distill.steps", "distill.batch_size", "student.widths", "pool.size", "teacher.width", "storage.N"):
        assert config.get(found, key) == config.get(published, key), key
    few = photos.choose(survey(300), accelerator=False)
    assert few.teacher.width < found.teacher.width and few.distill.steps < found.distill.steps


def test_too_few_images_are_refused(tmp_path, capsys):
    write(tmp_path / "few", 3)
    write(tmp_path / "split" / "train", 1)
    write(tmp_path / "split" / "test", 25)
    (tmp_path / "none").mkdir()
    for name, words in (
        ("few", "holds 3 images, 2 of them for training: at least 16"),
        ("split", "holds 26 images, 1 of them for training: at least 16"),
        ("none", "holds no images"),
        ("no", "not a folder"),
    ):
        assert main.main([f"--config=configs/folder.py:{tmp_path / name}"]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and words in said[0]


def test_the_work_dir_has_the_folder_s_name(tmp_path, monkeypatch):
    write(tmp_path / "my birds, 2024", 24)
    monkeypatch.chdir(tmp_path)
    name = "configs/folder.py:my birds, 2024"
    assert str(commandline.parse([f"--config={name}"]).workdir) == "runs/folder-my-birds-2024"
    found = commandline.parse([f"--config={name},krr_st"])
    assert str(found.workdir) == "runs/folder-my-birds-2024-krr_st" and found.config.method == "krr_st"
    other = commandline.parse([f"--config={name}", "--config.method=krr_st"])
    assert other.config == found.config
    assert found.config.data.name == f"folder:{tmp_path / 'my birds, 2024'}"


def test_a_config_of_ones_own_may_have_the_name(tmp_path):
    (tmp_path / "folder.py").write_text(
        "from ssdd_jax import config\n\n\ndef get_config():\n    return config.default()\n"
    )
    found = commandline.parse([f"--config={tmp_path / 'folder.py'}"])
    assert str(found.workdir) == "runs/folder"


def test_a_plan_that_fails_does_not_keep_a_run_from_its_work(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("out of something")

    monkeypatch.setattr("ssdd_jax.dry_run.make", fail)
    line = [f"--config=configs/folder.py:{write(tmp_path / 'photos', 24)}", f"--workdir={tmp_path / 'run'}"]
    assert main.main([*line, "--stage=data"]) == 0
    assert "time and memory cannot be predicted: out of something" in capsys.readouterr().out


TINY = {
    "data.image_size": 8,
    "teacher.width": 2,
    "teacher.projector_hidden": 8,
    "teacher.projector_out": 8,
    "teacher.epochs": 1,
    "teacher.warmup_epochs": 0,
    "student.widths": "(4,)",
    "pool.size": 2,
    "pool.steps": 3,
    "distill.steps": 4,
    "storage.base_size": 4,
    "storage.hidden": 2,
    "storage.M": 0,
    "approximate.steps": 5,
    "evaluate.seeds": 1,
    "evaluate.steps": 2,
    "evaluate.full_steps": 1,
    "evaluate.weight_decays": "(1e-3,)",
}


@pytest.mark.slow
def test_a_folder_without_labels_is_distilled(tmp_path, capsys):
    """What was found, chosen and is expected is said when a run begins, and it goes to the end."""
    path = write(tmp_path / "photos", 24)
    line = [f"--config=configs/folder.py:{path}", f"--workdir={tmp_path / 'run'}"]
    line += [f"--config.{key}={value}" for key, value in TINY.items()]
    assert main.main([*line, "--stage=teacher"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert main.main(line) == 0
    assert "24 images" in said[0] and "no labels" in said[0] and "ignored: 2" in said[0]
    assert said[1].startswith("resolution 8x8, set in the config")
    (expected,) = [one for one in said if "expected time" in one]
    assert "expected memory" in expected and " numbers; " in expected
    assert "expected time" not in capsys.readouterr().out  # of a run that goes on
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "distilled" in results["feature_r2"] and "linear" not in results
    # A set may be given to others, who need not know the folders of this machine.
    described = (tmp_path / "run" / "distilled" / "set.json").read_text()
    assert "folder:photos" in described and str(tmp_path) not in described
