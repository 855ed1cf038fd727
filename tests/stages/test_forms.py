"""The form of the outer step: measured once, kept in the run's folder, and taken again by a resumed run."""

import json
import types

import jax
import pytest
import tiny_runs

from ssdd_jax import config as configuration
from ssdd_jax import main, methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods import bilevel
from ssdd_jax.stages import forms
from ssdd_jax.training import loop


def forms_of(platform, **changes):
    """Models in parallel and convolution of each form on a platform."""
    config = configuration.default()
    config.update_from_flattened_dict({"storage.N": 4, "distill.batch_size": 32} | changes)
    method = methods.make(config, methods.Problem((8, 8, 1), 12, 100, platform=platform))
    return [tuple(form.changes.values()) for form in method.forms]


def test_what_is_measured():
    ten = {"pool.models_per_step": 10}
    assert forms_of("cpu", **ten) == []  # on a CPU one model follows the other
    assert forms_of("cuda", **ten) == [(10, "patches"), (1, "lax"), (10, "lax")]
    assert forms_of("cuda") == []  # one model a step: there is nothing to compute in parallel
    assert forms_of("cuda", **ten, **{"pool.form": "lax"}) == [(10, "lax"), (1, "lax")]
    assert forms_of("cuda", **ten, **{"pool.vectorize": 5}) == []
    assert bilevel.outer_settings(configuration.default(), "cuda").vectorize == 1


@pytest.fixture
def accelerated(monkeypatch):
    """An accelerator, for the choice of forms alone, and no step too few to measure."""
    monkeypatch.setattr(bilevel, "_platform", lambda platform: "cuda")
    monkeypatch.setattr(bilevel, "_precision", lambda config, platform: "float32")
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
    forms.keep(folder, {"pool.vectorize": 2, "pool.form": "lax"}, [])
    began = []
    monkeypatch.setattr(forms, "choose", lambda *_: pytest.fail("measured again"))
    begin = forms.begin
    monkeypatch.setattr(forms, "begin", lambda run, starts: began.append(run) or begin(run, starts))
    assert main.main(line) == 0
    run = began[0]
    assert forms.stored(run) == {"pool.vectorize": 2, "pool.form": "lax"}
    # On another device, and with a config that asks for another form, the choice does not hold.
    fixed = run._replace(method=forms.method_of(run, {"pool.vectorize": 1}))
    assert forms.stored(fixed) is None
    monkeypatch.setattr(forms, "device", lambda: "another card, 16 GB")
    assert forms.stored(run) is None


def test_a_start_that_does_not_fit_takes_the_next_form():
    said = []
    run = types.SimpleNamespace(say=said.append)

    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    assert forms.begin(run, [full, full, lambda: 7.0, full]) == 7.0
    assert said == 2 * ["distill: the device's memory is too small for the start in this form: taking the next one"]
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        forms.begin(run, [full])


def test_no_form_fits(monkeypatch):
    run = types.SimpleNamespace(method=types.SimpleNamespace(forms=[1, 2]), say=lambda line: None)
    monkeypatch.setattr(forms, "_seconds", lambda *_: float("nan"))
    training = types.SimpleNamespace(feed=None)
    with pytest.raises(UserError, match="holds no form of a step: lower config.pool.models_per_step"):
        forms.choose(run, [training, training], None, None)
