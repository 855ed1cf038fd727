"""The form of the outer step: measured once, kept in the run's folder, and taken again by a resumed run."""

import json

import pytest
import tiny_runs

from ssdd_jax import config as configuration
from ssdd_jax import main, methods
from ssdd_jax.methods import bilevel
from ssdd_jax.stages import forms
from ssdd_jax.training import loop


def forms_of(**changes):
    """Models in parallel and convolution of each form, on whatever platform `bilevel` takes this one for."""
    config = configuration.default()
    config.update_from_flattened_dict({"storage.N": 4, "distill.batch_size": 32} | changes)
    method = methods.make(config, methods.Problem((8, 8, 1), 12, 100))
    return [tuple(form.changes.values()) for form in method.forms]


def test_what_is_measured(monkeypatch):
    ten = {"pool.models_per_step": 10}
    assert forms_of(**ten) == []  # on a CPU one model follows the other
    monkeypatch.setattr(bilevel, "_platform", lambda: "cuda")
    assert forms_of(**ten) == [(10, "patches"), (1, "lax"), (10, "lax")]
    assert forms_of() == []  # one model a step: there is nothing to compute in parallel
    assert forms_of(**ten, **{"pool.form": "lax"}) == [(10, "lax"), (1, "lax")]
    assert forms_of(**ten, **{"pool.vectorize": 5}) == []
    assert bilevel.outer_settings(configuration.default()).vectorize == 1


@pytest.fixture
def accelerated(monkeypatch):
    """An accelerator, for the choice of forms alone, and no step too few to measure."""
    monkeypatch.setattr(bilevel, "_platform", lambda: "cuda")
    monkeypatch.setattr(bilevel, "_precision", lambda config: "float32")
    monkeypatch.setattr(forms, "LEAST_STEPS", 1)
    monkeypatch.setattr(forms, "SECONDS", 0.0)


@pytest.mark.slow
def test_the_fastest_is_kept_and_taken_again(tmp_path, monkeypatch, accelerated, capsys):
    tiny_runs.write_data(tmp_path)
    seconds = iter([0.003, 0.001, float("nan")])
    monkeypatch.setattr(forms, "_seconds", lambda *_: next(seconds))
    line = tiny_runs.arguments(tmp_path, distill__steps=10, pool__models_per_step=2)
    assert main.main([*line, "--stage=approximate"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 models in parallel, convolutions by lax is the fastest form, 1 ms a step" in printed
    assert "2 of 2 models in parallel, convolutions by lax: too large" in printed
    kept = json.loads((tmp_path / "run" / forms.FILE).read_text())
    assert kept["config"] == {"pool.form": "lax", "pool.vectorize": 1}
    assert [row["seconds_per_step"] for row in kept["measured"]] == [0.003, 0.001, None]
    # The chosen form computes the losses of a run that asks for it, up to rounding.
    asked = [*tiny_runs.arguments(tmp_path, "asked", distill__steps=10, pool__models_per_step=2, pool__vectorize=1)]
    assert main.main([*asked, "--config.pool.form=lax", "--stage=approximate"]) == 0
    lines = [loop.read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("run", "asked")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-2)


@pytest.mark.slow
def test_a_resumed_run_does_not_measure(tmp_path, monkeypatch, accelerated):
    tiny_runs.write_data(tmp_path)
    line = [*tiny_runs.arguments(tmp_path, distill__steps=10, pool__models_per_step=2), "--stage=approximate"]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / forms.FILE).write_text(json.dumps({"config": {"pool.vectorize": 2, "pool.form": "lax"}, "measured": []}))
    built = []
    method_of = forms.method_of
    monkeypatch.setattr(forms, "choose", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(forms, "method_of", lambda run, changes: built.append(dict(changes)) or method_of(run, changes))
    assert main.main(line) == 0
    assert built and all(changes == {"pool.vectorize": 2, "pool.form": "lax"} for changes in built)
