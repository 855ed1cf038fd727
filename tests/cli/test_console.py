"""Errors of every command: one line, status 2, nothing that a terminal cannot print."""

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import time
import types

import jax
import pytest
from tiny_runs import ROOT, TIMEOUT

from ssdd_jax import export, main
from ssdd_jax.cli import console
from ssdd_jax.runtime import devices


@pytest.mark.medium
@pytest.mark.parametrize("name", ["cuda", "gpu", "nonsense"])
def test_a_backend_that_is_not_there(name, tmp_path):
    """JAX has another error for each: of a plugin that is missing, of an alias, of an unknown name."""
    line = [sys.executable, "-m", "ssdd_jax.main", "--dry_run", f"--workdir={tmp_path / 'run'}"]
    variables = os.environ | {"JAX_PLATFORMS": name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    if name in ("cuda", "gpu") and done.returncode == 0:
        pytest.skip("this machine has that backend")
    said = done.stderr.splitlines()
    assert done.returncode == 2 and len(said) == 1
    assert f"JAX_PLATFORMS={name} names a backend that JAX cannot start here" in said[0] and "unset it" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_a_backend_that_is_not_there_in_a_call(tmp_path):
    code = """
import numpy, ssdd_jax
images, features = numpy.zeros((4, 8, 8, 3), numpy.uint8), numpy.zeros((4, 3))
try:
    ssdd_jax.distill(images, features, method="random")
except ssdd_jax.UserError as error:
    print(error)
"""
    variables = os.environ | {"JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout.startswith("JAX_PLATFORMS=nonsense names a backend") and done.stdout.count("\n") == 1


def test_other_errors_keep_their_traceback():
    def fail():
        raise AssertionError("of our own")

    with pytest.raises(AssertionError, match="of our own"):
        console.answer(fail, memory="")


def test_what_a_terminal_cannot_print_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert console.answer(lambda: print("3 ± 1, caf\udce9"), memory="") == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"3 \\xb1 1, caf\\udce9\n"


def test_a_home_that_is_nobodys(capsys):
    assert main.main(["--config=~nobody_of_this_name/config.py"]) == 2
    assert export.main(["--set=~nobody_of_this_name/set", "--form=npz"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("begins with ~ and a name that is no user's" in line for line in said)


@pytest.mark.medium
def test_a_reader_that_leaves():
    """As in `--help | head -1`: no traceback, neither then nor at the end of the process."""
    code = "import sys; from ssdd_jax.cli import console; sys.exit(console.answer(lambda: print('x' * {}), memory=''))"
    for length in (10, 1_000_000):
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(length)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(TIMEOUT) == 1


@pytest.mark.medium
def test_a_locale_without_utf8(tmp_path):
    """Files are read and written as UTF-8 in any locale."""
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    code = f"""
import locale, pathlib
assert locale.getpreferredencoding(False) != "utf-8"
from ssdd_jax.cli import arguments
from ssdd_jax.report import render
from ssdd_jax.runtime import files
folder = pathlib.Path({str(tmp_path)!r})
(folder / "a.json").write_bytes('{{"name": "caf\\u00e9"}}'.encode())
assert files.read_json(folder / "a.json") == {{"name": "caf\\u00e9"}}
assert "digits.py" in arguments.shipped_configs()
render._environment()
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=os.environ | variables, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_work_dir_that_is_not_utf8(tmp_path, capsys):
    """It is refused at once, because the library of the checkpoints would fail later."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for line in ([f"--workdir={folder}"], [f"--workdir={tmp_path / 'run'}", f"--shared={folder}"]):
        assert main.main(line) == 2
        assert "is not UTF-8, which checkpoints need: choose another --workdir" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_entered(capsys):
    """Whoever runs the tests may be allowed everything, so that the error is raised here."""

    def work():
        raise PermissionError(errno.EACCES, "Permission denied", "/private/runs/digits/results.json")

    assert console.answer(work, memory="nothing") == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("ssdd_jax: /private/runs/digits/results.json: Permission denied: check")
        and said.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGTERM, "stopped between two saved results"), (signal.SIGINT, "stopped")]
)
def test_a_stop_in_a_callback_of_the_collector_is_not_lost(number, words, capsys):
    """Python drops what is raised there; JAX has such a callback."""
    left = [True]

    def stop(phase, info):
        if left and phase == "start":
            left.clear()
            os.kill(os.getpid(), number)
            time.sleep(0)  # the handler runs between two instructions

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.callbacks.append(stop)
        gc.collect()
        time.sleep(TIMEOUT)

    try:
        assert console.answer(work, memory="") == 0
    finally:
        gc.callbacks.remove(stop)
    said = capsys.readouterr().err
    assert not left and said == f"ssdd_jax: {words}; the same command continues from there\n"


def test_what_threads_of_a_library_report_too_late_is_not_printed(monkeypatch):
    """TensorStore's, after a read that has failed; everything else that cannot be raised is printed as before."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    late = types.SimpleNamespace(exc_type=RuntimeError, exc_value=RuntimeError("Event loop is closed"), object=None)
    other = types.SimpleNamespace(exc_type=RuntimeError, exc_value=RuntimeError("Event loop is closed"), object=print)

    def work():
        sys.unraisablehook(late)
        sys.unraisablehook(other)

    assert console.answer(work, memory="") == 0
    assert printed == [other]
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the process that leaves ignores signals, this one stays
    with pytest.raises(SystemExit):
        console.leave(lambda _: 0, [])
    sys.unraisablehook(late)  # while the interpreter ends
    assert printed == [other]


def test_the_end_of_another_process_is_one_line(capsys, monkeypatch):
    error = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:3243")

    def work():
        raise error

    with pytest.raises(jax.errors.JaxRuntimeError):  # of one process it is an error of our own
        console.answer(work, memory="")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(devices, "report_failure", lambda line: None)
    assert console.answer(work, memory="") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "another process of this run has ended" in said
    error = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes")
    with pytest.raises(jax.errors.JaxRuntimeError):
        console.answer(work, memory="")


@pytest.mark.parametrize("forgotten", [True, False])
def test_an_interrupt_in_an_exec_leaves_the_status(forgotten, tmp_path):
    """With `python -m`; without what `leave` does, Python would end by SIGINT."""
    (tmp_path / "command.py").write_text(
        """
from ssdd_jax.cli import console

def main(arguments):
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return 0

if __name__ == "__main__":
    FORGOTTEN
""".replace("FORGOTTEN", "console.leave(main, [])" if forgotten else "main([])")
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "command"]
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == (0 if forgotten else -signal.SIGINT), done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_full_memory_is_one_line(error, capsys):
    def work():
        raise error

    assert console.answer(work, memory="the batch sizes") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the machine's memory is full" in said and "lower the batch sizes" in said


def test_full_memory_while_modules_are_imported(capsys, monkeypatch):
    def fail(arguments):
        raise ImportError("libx.so: failed to map segment from shared object")

    monkeypatch.setattr(main, "main", fail)
    assert main._main([]) == 2
    assert capsys.readouterr().err.startswith("ssdd_jax: the machine's memory is full")


@pytest.mark.medium
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("megabytes", [60, 250, 300, 340])
def test_too_little_memory_for_libraries_is_one_line(megabytes):
    """Between 220 and 350 MB SciPy's OpenBLAS would wait for its buffers without end."""
    code = """
import importlib, resource, sys
from ssdd_jax.cli import console
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
sys.exit(console.answer(lambda: importlib.import_module("scipy.linalg"), memory="the batch sizes"))
"""
    line = [sys.executable, "-c", code, str(megabytes)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "lower the batch sizes" in done.stderr
