"""Locks between processes: who waits, who is refused, and what remains of a holder that was killed."""

import json
import subprocess
import sys
import threading
import time

import pytest
import tiny_runs

from ssdd_jax.runtime import files, locks

HOLDER = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from ssdd_jax.runtime import locks
with locks.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_a_second_holder_is_refused_or_waits(tmp_path):
    path, waited, order = tmp_path / "lock", threading.Event(), []

    def second():
        with locks.held(path, wait=waited.set):
            order.append("second")

    with locks.held(path):
        with pytest.raises(locks.Busy), locks.held(path):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(tiny_runs.TIMEOUT)
        order.append("first")
    thread.join(tiny_runs.TIMEOUT)
    assert order == ["first", "second"] and not path.exists()


def test_an_error_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.held(tmp_path / "lock"):
        _ = 1 / 0
    with locks.held(tmp_path / "lock"):
        pass


def test_a_file_that_was_renamed_stays(tmp_path):
    with locks.held(tmp_path / "partial", wait=lambda: None):
        (tmp_path / "partial").write_text("content")
        (tmp_path / "partial").rename(tmp_path / "whole")
        # The next writer's file is not the holder's to delete.
        (tmp_path / "partial").write_text("of another")
    assert (tmp_path / "whole").read_text() == "content" and (tmp_path / "partial").read_text() == "of another"


@pytest.mark.medium
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    line = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), str(tiny_runs.ROOT)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(locks.Busy), locks.held(tmp_path / "lock"):
        pass
    process.kill()
    process.communicate(timeout=tiny_runs.TIMEOUT)
    with locks.held(tmp_path / "lock"):
        pass


def test_writers_of_one_file_do_not_meet(tmp_path):
    """They share the name of the file that is written first and renamed then."""
    path, failures = tmp_path / "values.json", []

    def write(number):
        try:
            for _ in range(30):
                files.write_json(path, {"from": [number] * 1000})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(set(json.loads(path.read_text())["from"])) == 1
        time.sleep(0.001)
    assert not failures and [file.name for file in tmp_path.iterdir()] == ["values.json"]
