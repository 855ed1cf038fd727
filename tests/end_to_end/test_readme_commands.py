"""Every command of the README and the guides: run here, or checked for its words and listed with the reason."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tiny_runs
from PIL import Image
from tiny_runs import ROOT, TIMEOUT

from ssdd_jax import (
    main,
    methods,  # noqa: F401, fills the table of editions
)
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.evaluate import __main__ as evaluate
from ssdd_jax.evaluate import options as evaluate_options

FILES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]

MINUTES, HOURS = "minutes on two cores", "hours on an accelerator"
DOWNLOADED = "needs images that are not in the repository"
MAIN, EVALUATE = "python -m ssdd_jax.main", "python -m ssdd_jax.evaluate"
# Commands that are not run here, and why. Those of `ssdd_jax.main` and `ssdd_jax.evaluate` are parsed below.
NOT_RUN = {
    # The two commands that `.ci/run` types.
    "python -m pip install . && python -m ssdd_jax.main": MINUTES,
    "python -m pip install '.[test]' && python -m pytest -n 2 --dist loadfile": "runs this test",
    "python -m pip install .": MINUTES,
    "python -m ssdd_jax.main": MINUTES,
    "python -m ssdd_jax.main --dry_run": "a minute",  # tests/dry_run/test_dry_run.py runs it on small data
    "python -m ssdd_jax.main --help": "printed by tests/test_main.py",
    "python -m ssdd_jax.main --help_config": "printed by tests/test_main.py",
    "python -m ssdd_jax.main --config.storage.N=10 --config.distill.steps=300 --workdir=runs/small": MINUTES,
    "python -m ssdd_jax.main --config.storage.bytes=8192 --workdir=runs/bytes": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.data.data_dir=DIR": HOURS,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.data.name=npz:mine.npz "
    "--config.teacher.features=features.npz": HOURS,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.teacher.source=resnet50.safetensors "
    "--config.data.data_dir=DIR": HOURS,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.devices.data=4": HOURS,
    "python -m ssdd_jax.main --config=configs/cifar10.py --config.pool.size=8 --config.pool.models_per_step=8": HOURS,
    "python -m ssdd_jax.main --config=configs/cifar100.py:mkdt --shared=runs/cifar100-shared "
    "--config.data.data_dir=DIR": HOURS,
    "python -m ssdd_jax.main --config=configs/digits.py:mkdt --config.evaluate.own_rate=True "
    '--config.student.norm=instance "--config.student.widths=(32,32,32)"': MINUTES,
    "python -m ssdd_jax.main --config=configs/folder.py:PATH": MINUTES,  # tests/api/test_photos.py, on small data
    "python -m ssdd_jax.main --config=configs/folder.py:PATH --config.teacher.source=FILE": MINUTES,
    "python -m ssdd_jax.main --config=configs/imagenet64.py --config.data.cache_dir=CACHE "
    "--config.data.data_dir=DIR": HOURS,
    "python -m ssdd_jax.main --config=configs/tinyimagenet.py --config.data.data_dir=tiny-imagenet-200.zip": HOURS,
    # tests/runtime/test_processes.py runs two processes on one machine.
    "python -m ssdd_jax.main --workdir=/shared/run --config.devices.hosts=node1:8476,2,0": "needs two hosts",
    "python -m ssdd_jax.main --workdir=/shared/run --config.devices.hosts=node1:8476,2,1": "needs two hosts",
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus,random "
    '--bytes=4096,16384,65536,262144,1048576 --references=1 "--config.student.widths=(16,32,64)" '
    '"--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 --config.data.data_dir=DIR': MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=kmeans --bytes=4096,16384,65536 "
    "--references=1 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.data.data_dir=DIR --workdir=runs/bytes-kmeans "
    "--beside=experiments/results/compare-cifar10-bytes-plus/comparison.json": (MINUTES),
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=krr_st --bytes=16384,65536 --references=1 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.data.data_dir=DIR --workdir=runs/bytes-krr_st --beside=runs/bytes-kmeans/comparison.json": (MINUTES),
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost --bytes=16384 --references=1 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.data.data_dir=DIR --workdir=runs/bytes-boost --beside=runs/bytes-krr_st/comparison.json": (MINUTES),
    "python -m experiments.compare --methods=boost_plus,krr_st,random,kmeans --bytes=2048,4096,8192,16384,32768 "
    "--references=1 --config.evaluate.seeds=1 --workdir=runs/digits-bytes": MINUTES,
    "python -m experiments.compare --methods=boost --bytes=2048,4096 --references=1 --config.evaluate.seeds=1 "
    "--workdir=runs/digits-bytes-boost --beside=runs/digits-bytes/comparison.json": MINUTES,
    "python -m experiments.choose --config=configs/digits.py:random --vary=storage.targets=int8,int6,int5 "
    "--vary=storage.quality=50,35,20 --config.storage.bytes=4096 --config.evaluate.seeds=1 --seeds=5 "
    "--by=feature_r2": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu,clp_dd --config.storage.N=10 --config.distill.steps=1000 "
    "--config.encoder.head_epochs=300 --config.evaluate.seeds=1 --config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu,lgm --config.storage.N=10 --config.distill.steps=600 "
    "--config.encoder.extend_every=100 --config.encoder.head_epochs=300 --config.encoder.label_steps=300 "
    "--config.evaluate.seeds=1 --config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu,clp_dd --config.teacher.source=resnet56-4bfd9763.th "
    "--config.teacher.stem_padding=1 --config.teacher.preprocessing=imagenet --config.storage.N=10 "
    "--config.distill.steps=1000 --config.encoder.head_epochs=300 --config.evaluate.seeds=1 "
    "--config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu,lgm --config.teacher.source=resnet56-4bfd9763.th "
    "--config.teacher.stem_padding=1 --config.teacher.preprocessing=imagenet --config.storage.N=10 "
    "--config.distill.steps=600 --config.encoder.extend_every=100 --config.encoder.head_epochs=300 "
    "--config.evaluate.seeds=1 --config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu,clp_dd --config.storage.N=100 "
    "--config.distill.steps=1000 --config.encoder.head_epochs=300 --config.evaluate.seeds=1 "
    "--config.data.data_dir=DIR": MINUTES,
    "python -m experiments.choose --config=configs/cifar10.py:cpu --config.storage.N=20 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--vary=storage.M=60,240 --seeds=1 --by=feature_r2_whitened --config.data.data_dir=DIR": MINUTES,
    "python -m experiments.choose --config=configs/cifar10.py:cpu --config.storage.N=20 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.distill.pairs_per_step=480 --config.distill.steps=1 --config.pool.size=1 --config.pool.steps=2 "
    "--vary=storage.M=240,480,960,1920 --seeds=1 --by=feature_r2 --config.data.data_dir=DIR": MINUTES,
    "python -m experiments.choose --config=configs/cifar10.py:cpu --config.storage.N=20 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.distill.pairs_per_step=480 --config.storage.M=240 --vary=storage.M=480 --seeds=1 --by=feature_r2 "
    "--config.data.data_dir=DIR": MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus,krr_st,random --N=50 "
    '--references=1 --config.evaluate.seeds=1 "--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR': (
        MINUTES
    ),
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus,boost,krr_st,random --N=20 "
    "--references=1 --config.teacher.source=resnet56-4bfd9763.th --config.teacher.stem_padding=1 "
    '--config.teacher.preprocessing=imagenet "--config.student.widths=(16,32,64)" --config.evaluate.seeds=1 '
    '"--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR': MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus,random --N=50,100 "
    '--references=1 --config.evaluate.seeds=1 "--config.evaluate.weight_decays=(1e-3,)" '
    "--config.data.data_dir=DIR": MINUTES,
    "python -m experiments.choose --config=configs/cifar10.py:cpu,boost_plus --config.storage.N=50 "
    "--config.storage.base_size=32 --config.storage.V=24 --vary=storage.base_size=16 --vary=storage.V=12 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--seeds=1 --by=feature_r2_whitened --config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu,boost_plus --config.storage.bytes=262144 "
    '"--config.evaluate.weight_decays=(1e-3,)" '
    "--config.evaluate.seeds=1 \"--config.evaluate.entries=('distilled',)\" --config.data.data_dir=DIR": MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus,boost,random --N=20 --seeds=3 "
    "--references=1 --config.data.name=folder:PATH --config.data.image_size=32 "
    '"--config.student.widths=(16,32,64)" --config.evaluate.seeds=1 "--config.evaluate.weight_decays=(1e-3,)"': MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus --bytes=65536 --seeds=1 "
    "--beside=experiments/results/compare-cifar10-b65536/comparison.json --config.evaluate.seeds=1 "
    '"--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR': MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost_plus --N=20 "
    "--beside=experiments/results/compare-cifar10-n20/comparison.json --config.evaluate.seeds=1 "
    '"--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR': MINUTES,
    "python -m experiments.choose --config=configs/cifar10.py:cpu,boost_plus --config.storage.N=20 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.storage.U=28 --vary=storage.U=16,47 --seeds=1 --by=feature_r2 --config.data.data_dir=DIR": MINUTES,
    "python -m experiments.choose --config=configs/digits.py:boost_plus --config.evaluate.seeds=2 "
    "--config.storage.U=54 --vary=storage.U=4,8,16,29 --vary=storage.V=4,24 --seeds=1 --by=feature_r2": MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost,krr_st,random --N=50 --references=1 "
    '"--config.student.widths=(16,32,64)" "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.distill.pairs_per_step=480 --equal_seconds --config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu --config.storage.N=50 --config.storage.M=600 "
    '--config.storage.U=86 --config.storage.V=54 "--config.student.widths=(16,32,64)" '
    '"--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 --config.distill.pairs_per_step=480 '
    "--config.distill.steps=1 --config.pool.size=1 --config.pool.steps=2 --config.data.data_dir=DIR": MINUTES,
    "python -m experiments.choose --vary=storage.image_weight=8 --vary=storage.tolerance=0.2 --seeds=1 "
    "--by=feature_r2_whitened --config.evaluate.seeds=2": MINUTES,
    "python -m ssdd_jax.main --config=configs/cifar10.py:cpu --config.storage.N=20 --config.storage.tolerance=0.2 "
    "--config.storage.image_weight=8 --config.distill.pairs_per_step=480 --config.distill.steps=1 --config.pool.size=1 "
    '--config.pool.steps=2 "--config.evaluate.weight_decays=(1e-3,)" --config.evaluate.seeds=1 '
    "--config.data.data_dir=DIR": MINUTES,
    "python -m ssdd_jax.evaluate --set=cifar10-n20 --source=runs/compare-cifar10-cpu/boost-N20-seed0 "
    "--shared=runs/compare-cifar10-cpu/shared --models=convnet_32_64_128_bn --references=none --seeds=1 "
    "--weight_decays=1e-3 --cosine=True --data_dir=DIR": MINUTES,
    "python -m ssdd_jax.evaluate": MINUTES,
    "python -m ssdd_jax.evaluate --set=runs/digits/distilled": MINUTES,
    "python -m ssdd_jax.evaluate --set=PATH --models=convnet,resnet18 --targets=cifar10,stanford_dogs "
    "--protocol=linear,finetune --data_dir=DIR": HOURS,
    "python -m ssdd_jax.evaluate --set=PATH --models=convnet,resnet18,vit_tiny --targets=cifar10,stanford_dogs "
    "--protocol=linear,finetune,few_labels,zero_shot_kd --seeds=5 --data_dir=DIR": HOURS,
    "python -m ssdd_jax.evaluate --set=ours=runs/a/distilled,theirs=krr_st_folder --source=runs/a": MINUTES,
    # tests/test_export.py and tests/report/test_comparison_page.py run every form.
    "python -m ssdd_jax.export --set=runs/digits/distilled --form=npz": "as the form krr_st below",
    "python -m ssdd_jax.export --set=runs/digits/distilled --form=png": "as the form krr_st below",
    "python -m ssdd_jax.export --set=runs/digits/distilled --form=safetensors --out=pairs": "run by tests/formats",
    "python -m ssdd_jax.export --set=runs/digits/distilled --to=hf://OWNER/NAME --license=cc-by-4.0": "needs a hub",
    "python -m ssdd_jax.export": "as the form krr_st below",
    "python -m pip install '.[hub]'": MINUTES,
    "python -m ssdd_jax.report": "as the comparison below",
    "python -m ssdd_jax.report runs/digits": "as the comparison below",
    # tests/experiments runs these on small data, except for those that need a download or an accelerator.
    "python -m experiments.accelerator": MINUTES,
    "python -m experiments.sizes --config=configs/digits.py --N=10,20,40": MINUTES,
    "python -m experiments.agreement --repository=DIR --set=DIR --models=convnet_32_64_128_bn,convnet_32_64_128_in "
    "--data_dir=DIR": DOWNLOADED,
    # tests/experiments/test_train_teacher.py runs it on digits.
    "python -m experiments.train_teacher --config=configs/cifar10.py --config.data.data_dir=DIR --workdir=runs/teacher "
    '--config.teacher.width=32 "--config.teacher.blocks=(1,1,1,1)" --config.teacher.epochs=150 '
    "--config.teacher.warmup_epochs=5": HOURS,
    "python -m experiments.benchmark": MINUTES,
    "python -m experiments.benchmark --stages=inner,outer,whole,approximation,evaluation --official=selfsup_dd "
    "--pairs=100,400 --repeats=3": MINUTES,
    "python -m experiments.benchmark --stages=inner,outer,whole,approximation,evaluation --official=selfsup_dd "
    "--pairs=100,400 --repeats=3 --output=experiments/results/benchmark.json": MINUTES,
    "python -m experiments.benchmark --stages=inner,outer,whole,evaluation --pairs=100,400 --repeats=2 "
    "--output=experiments/results/benchmark-avx2.json": MINUTES,
    "python -m experiments.benchmark --stages=teacher --teacher-steps=25 --repeats=1 --no-compile "
    "--output=experiments/results/benchmark-teacher.json": MINUTES,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --N=50 --seeds=1 --methods=boost,krr_st,random "
    "--config.data.data_dir=DIR": DOWNLOADED,
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost,random --bytes=65536 --seeds=1 "
    '--references=1 --config.evaluate.seeds=1 "--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR': (
        DOWNLOADED
    ),
    "python -m experiments.compare --config=configs/cifar10.py:cpu --methods=boost,krr_st,mkdt,random,kmeans --N=20 "
    '--references=1 --config.evaluate.seeds=1 "--config.evaluate.weight_decays=(1e-3,)" --config.data.data_dir=DIR': (
        DOWNLOADED
    ),
    "python -m experiments.compare": MINUTES,
    "python -m experiments.compare --methods=boost,krr_st,random --N=20": MINUTES,
    "python -m experiments.compare --methods=boost_plus,boost,random --N=20 --references=1 --config.evaluate.seeds=1": (
        MINUTES
    ),
    "python -m experiments.compare --methods=boost,krr_st,mkdt,scdd,random,kmeans,high_loss,noise --N=20 "
    "--config.evaluate.seeds=1": MINUTES,
    # tests/experiments/test_choose.py runs it on small data.
    "python -m experiments.choose --vary=distill.learning_rate=0.01,0.03,0.1 --vary=distill.steps=250,500,1000": (
        MINUTES
    ),
    "python -m experiments.choose --vary=distill.learning_rate=0.01,0.03,0.1 --vary=distill.steps=250,500,1000 "
    "--vary=storage.M=0,40,80 --vary=teacher.epochs=35,70 --config.evaluate.seeds=1": MINUTES,
    "python -m experiments.fuzz": MINUTES,
    "python -m experiments.torture": MINUTES,
    "python -m experiments.endurance": MINUTES,
    "python -m experiments.convolutions": MINUTES,
    "python -m experiments.cost_curves --output=experiments/results/cost_curves.json": MINUTES,
    "python -m experiments.measure_reader": MINUTES,
    "python -m experiments.resident --workdir=DIR --output=FILE -- --config=...": MINUTES,
}
# Commands that are run here, and text or a file that they leave.
RUN = {
    "python -m ssdd_jax.report runs/digits runs/digits-krr_st --out=side_by_side.html": "side_by_side.html",
    "python -m ssdd_jax.export --set=PATH --form=krr_st": "krr_st",
    "python -m ssdd_jax.export --set=cifar10-n20 --form=safetensors --out=pairs": (
        "480 pairs (32x32x3 images, 256 target numbers) as safetensors"
    ),
    "python -m ssdd_jax.export --set=cifar10-n20 --form=packed --images=int8 --targets=int8 --out=runs/cifar10-int8": (
        "bytes in runs/cifar10-int8/set.safetensors, 268,084 before"
    ),
    "python -m pydoc ssdd_jax.krr": "predict(",
    "python -m pydoc ssdd_jax.methods.krr_st": "make(",
}


def commands():
    """Python commands of the shell blocks, without comments, and those in backquotes."""
    found = set()
    for text in (file.read_text() for file in FILES):
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        lines = [line.split("  #")[0].split(" # ")[0].strip() for line in blocks.splitlines()]
        found |= {line for line in lines if line.startswith("python -m ")}
        found |= set(re.findall(r"`(python -m [^`]+)`", text))
    return found


def launched():
    """Commands of `ssdd_jax.main` inside those of a cluster."""
    text = (ROOT / "docs" / "guides" / "devices.md").read_text()
    return re.findall(r"(?:srun|gcloud) .*?(python -m ssdd_jax\.main[^'\n]*)", text)


def test_every_command_is_run_or_listed():
    assert commands() == set(NOT_RUN) | set(RUN)


@pytest.mark.parametrize(
    "command", sorted({c for c in NOT_RUN if c.startswith(MAIN) and "--help" not in c} | set(launched()))
)
def test_the_words_of_a_command_that_is_not_run_are_known(command, tmp_path, monkeypatch):
    (tmp_path / "PATH").mkdir()
    for i in range(30):
        Image.new("RGB", (50, 40)).save(tmp_path / "PATH" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    options = commandline.parse(shlex.split(command)[3:])
    assert options.stage == "report" and options.workdir.parent in (pathlib.Path("runs"), pathlib.Path("/shared"))


@pytest.mark.parametrize("command", sorted(command for command in NOT_RUN if command.startswith(EVALUATE)))
def test_the_options_of_an_evaluation_are_known(command):
    words = shlex.split(command)[3:]
    assert all(word.split("=")[0] in evaluate.HELP + evaluate_options.page() for word in words)
    assert evaluate.parse(words) is not None


def test_a_cluster_has_commands():
    assert len(launched()) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory, session_folder):
    """A folder with small versions of the runs that the commands name."""
    path = tmp_path_factory.mktemp("readme")
    run, _ = tiny_runs.finished(session_folder)
    shutil.copytree(run, path / "runs" / "digits")
    line = tiny_runs.arguments(run.parent, path / "runs" / "digits-krr_st", method="krr_st", evaluate__seeds=1)
    assert main.main(line) == 0
    return path


# Those that need no run; tests/report and tests/test_export.py have the arguments of the others, too.
ALONE = [command for command in sorted(RUN) if command.startswith("python -m pydoc")]


@pytest.mark.medium
@pytest.mark.parametrize(
    "command",
    [name if name in ALONE else pytest.param(name, marks=pytest.mark.slow) for name in sorted(RUN)],
)
def test_run(command, request, tmp_path):
    folder = tmp_path if command in ALONE else request.getfixturevalue("folder")
    words = shlex.split(command.replace("PATH", "runs/digits/distilled"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert RUN[command] in done.stdout + done.stderr
