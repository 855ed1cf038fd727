"""A run's folder, and the folder that runs share."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tiny_runs import TIMEOUT, wait_until

from ssdd_jax import config as configuration
from ssdd_jax.errors import UserError
from ssdd_jax.runtime.workdir import Workdir, fingerprint

PARTS = ("data", "experts", "evaluate.probe_steps")


@pytest.fixture
def work(tmp_path):
    return Workdir(tmp_path / "run", tmp_path / "shared")


def changed(**changes):
    """The default config with `a__b=value` as `a.b`."""
    found = configuration.default()
    found.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_where_things_are(tmp_path):
    """What runs may share is in the shared folder, or in the run's own."""
    alone, together = Workdir(tmp_path / "run"), Workdir(tmp_path / "run", tmp_path / "shared")
    assert alone.shared == alone.folder == together.folder == tmp_path / "run"
    for name in ("teacher", "features"):
        assert getattr(alone, name) == tmp_path / "run" / name
        assert getattr(together, name) == tmp_path / "shared" / name
    for name in ("samples", "checkpoints", "distilled", "evaluation", "figures"):
        assert getattr(together, name) == tmp_path / "run" / name
    assert together.own("probe", shared=True) == tmp_path / "shared" / "probe"
    assert together.own("probe", shared=False) == tmp_path / "run" / "probe"
    assert alone.own("probe", shared=True) == alone.own("probe", shared=False) == tmp_path / "run" / "probe"
    assert names(tmp_path) == []  # nothing is made yet


def test_a_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    work = Workdir("~/run", "~/shared")
    assert (work.folder, work.shared) == (tmp_path / "run", tmp_path / "shared")


def test_bound_records_what_the_output_depends_on(work):
    config = changed(experts__count=7, method="mkdt")
    with work.bound("probe", config, PARTS):
        pass
    recorded = json.loads((work.shared / "probe.json").read_text())
    flat = configuration.flatten(config)
    wanted = {key for key in flat if key.split(".")[0] in ("data", "experts")} | {"evaluate.probe_steps"}
    wanted -= {"data.data_dir", "data.cache_dir"}  # where data are changes nothing
    assert recorded == {key: flat[key] for key in wanted} and recorded["experts.count"] == 7


def test_bound_to_the_same_values_again(work):
    """Whatever else is different."""
    for config in (changed(), changed(), changed(seed=5, method="mkdt", evaluate__probe_batch_size=8, storage__N=3)):
        with work.bound("probe", config, PARTS):
            pass
    other = Workdir(work.folder.parent / "other", work.shared)
    with other.bound("probe", changed(seed=9), PARTS):
        pass


def test_bound_refuses_a_difference_by_name(work):
    with work.bound("probe", changed(), PARTS):
        (work.shared / "probe").mkdir()
    before = (work.shared / "probe.json").read_text()
    other = changed(experts__count=7, evaluate__probe_steps=11, experts__widths=(8, 8), storage__N=3)
    with pytest.raises(UserError) as caught, work.bound("probe", other, PARTS):
        pytest.fail("the stage ran")
    text = str(caught.value)
    assert text.startswith(f"{work.shared / 'probe'} was made with another config: evaluate.probe_steps (5000 there, 1")
    assert "experts.count (100 there, 7 now)" in text
    assert "experts.widths ([128, 128, 128] there, [8, 8] now)" in text
    assert "storage" not in text and "choose another --shared" in text and "\n" not in text
    assert (work.shared / "probe.json").read_text() == before
    # Once the output is gone there is nothing to be bound to.
    (work.shared / "probe").rmdir()
    with work.bound("probe", other, PARTS):
        pass
    assert json.loads((work.shared / "probe.json").read_text())["experts.count"] == 7
    # The lock is not kept, and another stage is another matter.
    with work.bound("experts", other, PARTS):
        pass


@pytest.mark.parametrize("parts", [PARTS, ()])
def test_nothing_is_recorded_in_a_folder_of_its_own(tmp_path, parts):
    """It is bound to its config as a whole."""
    work = Workdir(tmp_path / "run")
    for config in (changed(), changed(experts__count=7)):
        with work.bound("probe", config, parts):
            pass
    assert [path for path in tmp_path.rglob("*.json")] == []


def test_nothing_is_recorded_of_a_stage_that_is_not_shared(work):
    with work.bound("distill", changed(), ()):
        pass
    assert names(work.shared) == []


def test_an_error_lets_the_shared_folder_go(work):
    with pytest.raises(ZeroDivisionError), work.bound("probe", changed(), PARTS):
        raise ZeroDivisionError
    with work.bound("probe", changed(), PARTS):
        pass


HOLD = """
import pathlib, sys, time
from ssdd_jax import config
from ssdd_jax.runtime.workdir import Workdir
run, shared, stop = map(pathlib.Path, sys.argv[1:])
with Workdir(run, shared).bound("probe", config.default(), ("data",)):
    print("held", flush=True)
    while not stop.exists():
        time.sleep(0.01)
    (shared / "output").write_text("made by the first")
"""


@contextlib.contextmanager
def held(work, stop):
    """Another process has the shared folder until the file `stop` is there."""
    line = [sys.executable, "-c", HOLD, str(work.folder.parent / "other"), str(work.shared), str(stop)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.mark.medium
def test_a_run_that_shares_the_folder_of_another_waits_for_it(work, tmp_path):
    """Also of one that shares with nobody, and has its stages in its own folder."""
    stop, lines = tmp_path / "stop", []
    mine = Workdir(work.shared)

    def alone():
        with mine.bound("probe", changed(), ("data",), say=lines.append):
            pass

    with held(work, stop):
        thread = threading.Thread(target=alone, daemon=True)
        thread.start()
        wait_until(lambda: lines)
        assert thread.is_alive() and lines[0].startswith("probe: waiting for another run")
        stop.touch()
        thread.join(timeout=TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.medium
def test_a_second_run_waits_for_the_first(work, tmp_path):
    """And then finds what the first has made."""
    stop, found, lines = tmp_path / "stop", [], []

    def second():
        with work.bound("probe", changed(), ("data",), say=lines.append):
            found.append((work.shared / "output").read_text())

    with held(work, stop):
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        wait_until(lambda: lines)
        assert thread.is_alive() and found == []
        assert lines == [f"probe: waiting for another run that is making it in {work.shared}"]
        with work.bound("experts", changed(), ("data",), say=lines.append):
            pass  # what the other makes is not what this stage makes
        stop.touch()
        thread.join(timeout=TIMEOUT)
    assert found == ["made by the first"]


def test_claim_binds_the_folder_to_its_config(tmp_path):
    """Once it is recorded; until then a mistake in it can be mended."""
    work = Workdir(tmp_path / "run")
    with work.claim(changed(seed=1)):
        pass
    with work.claim(changed()):
        work.record(changed())
    with work.claim(changed()):
        work.record(changed())
    with pytest.raises(UserError, match=r"run was made with another config: seed \(0 there, 2 now\); choose another"):
        with work.claim(changed(seed=2)):
            pytest.fail("claimed")
    assert json.loads(work.config.read_text())["seed"] == 0


def test_claim_is_for_one_at_a_time(tmp_path):
    """Refused at once, not waited for."""
    work = Workdir(tmp_path / "run")
    with work.claim(changed()):
        with pytest.raises(UserError, match="another run is using .*run: wait for it, or choose another --workdir"):
            with Workdir(tmp_path / "run").claim(changed()):
                pytest.fail("claimed twice")
    with work.claim(changed()):
        pass


def test_seconds_add_up(tmp_path, monkeypatch):
    """Over several runs, by stage; also those of a stage that failed."""
    clock = iter([10.0, 12.5, 100.0, 104.0, 7.0, 8.25])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert Workdir(tmp_path).read_seconds() == {}
    with Workdir(tmp_path).timed("teacher"):
        pass
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path).timed("teacher"):
        raise ZeroDivisionError
    with Workdir(tmp_path).timed("distill"):
        pass
    assert Workdir(tmp_path).read_seconds() == {"teacher": 6.5, "distill": 1.25}


def test_fingerprint():
    """Of the numbers and the shape, whatever the memory's layout."""
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 6, 3), dtype=np.uint8)
    mark = fingerprint(images)
    assert mark == fingerprint(images.copy()) == fingerprint(np.asfortranarray(images)) and len(mark) == 64
    for place in (0, 49):
        other = images.copy()
        other[place, 1, 2, 0] ^= 1
        assert fingerprint(other) != mark
    assert fingerprint(images.reshape(50, 6, 4, 3)) != mark
    assert fingerprint(images[:49]) != mark and fingerprint(images[::-1]) != mark
