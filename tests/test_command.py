"""The command `ssdd`: it leads to the commands of the package, and is quick where it leads nowhere."""

import importlib
import subprocess
import sys
import tomllib

import pytest
from tiny_runs import ROOT, TIMEOUT

import ssdd_jax
from ssdd_jax import __main__ as command


def test_the_script_is_this_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["ssdd"].partition(":")
    assert getattr(importlib.import_module(module), name) is command.cli


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_command_answers_as_its_module_does(name, capsys):
    module = importlib.import_module(command.COMMANDS[name][0])
    with pytest.raises(SystemExit) as left:
        command.main([name, "--help"])
    page = capsys.readouterr().out
    assert left.value.code == 0 and f"`ssdd {name}` is the same command" in page
    assert module.main(["--help"]) == 0 and capsys.readouterr().out == page


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_mistake_is_one_line_and_status_2(name, capsys):
    with pytest.raises(SystemExit) as left:
        command.main([name, "--no_such_option=1"])
    output = capsys.readouterr()
    assert left.value.code == 2 and not output.out
    assert output.err.count("\n") == 1 and output.err.startswith("ssdd_jax: ") and "no_such_option" in output.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "name a command: there are run, evaluate, export, report"),
        (["evalute"], "unknown command 'evalute': did you mean evaluate?"),
        (["--config=x"], "unknown command '--config=x': there are run"),
    ],
)
def test_what_is_no_command_is_refused(arguments, words, capsys):
    assert command.main(arguments) == 2
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1 and words in output.err


def test_help_and_version_load_nothing_slow():
    """Nor does the package itself: its names are imported when they are used."""
    script = "import sys, ssdd_jax.__main__ as c; c.main(sys.argv[1:]); print('jax' in sys.modules)"
    for option, words in (("--help", "ssdd COMMAND"), ("--version", ssdd_jax.__version__)):
        line = [sys.executable, "-c", script, option]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
        assert words in done.stdout and done.stdout.endswith("False\n"), done.stdout + done.stderr


def test_the_names_of_the_package():
    assert set(ssdd_jax.__all__) <= set(dir(ssdd_jax))
    assert ssdd_jax.load is importlib.import_module("ssdd_jax.formats").read
    assert ssdd_jax.krr.predict and callable(ssdd_jax.evaluate)
    with pytest.raises(AttributeError, match="has no attribute 'destil'"):
        ssdd_jax.destil  # noqa: B018


def test_the_package_has_types():
    assert (ROOT / "ssdd_jax" / "py.typed").is_file()
