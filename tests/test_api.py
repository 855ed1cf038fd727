"""What is true of every public function: annotations, shapes in docstrings, key first, few positional parameters."""

import importlib
import inspect
import subprocess
import sys

import pytest
from tiny_runs import TIMEOUT

# What the modules of the core offer at least.
NAMES = {
    "": "DistilledSet UserError distill evaluate load train",
    "api.distill": "Progress distill",
    "api.defaults": "choose",
    "api.train": "Student train",
    "decoder": "Params init decode_images decode_targets decode_pairs",
    "augment": "table apply",
    "krr": "predict",
    "inner": "init features step train",
    "pool": "init step",
    "outer": "loss step",
    "approximate": "fit apply",
    "methods.budget": "plan",
    "distilled": "DistilledSet load from_pairs from_params",
    "methods.mkdt.experts": "make train_epoch image_losses",
    "methods.mkdt.trajectories": "Settings Store feed flatten unflatten",
    "methods.mkdt.matching": "Settings Params init loss step draw_rows",
    "methods.scdd.inversion": "Settings Network init loss step logits group_labels",
    "methods.scdd.post_training": "Settings train accuracy distillation_loss",
    "training.transforms": "random_crop random_flip mixup",
    "stages.samples": "SELECTIONS choose preparations samples_of nearest_to_centres",
    "methods": "METHODS Method Stage check make",
    "methods.base": "Method Problem Run Say Source Stage Feed",
    "methods.bilevel": "State Info make",
    **{f"methods.{name}": "make" for name in ("boost", "krr_st", "mkdt", "scdd", "subset", "rela", "noise")},
    "stages.teacher": "train",
    "stages.features": "compute of_images",
    "stages.distill": "distill learn",
    "stages.approximate": "export set_of",
    "stages.evaluate": "measure",
    "stages.gate": "accuracies check",
    "stages.report": "draw",
    "data.features": "Features read load save",
    "runtime.workdir": "Workdir fingerprint",
    "runtime.inputs": "PARTS hashes compare without_places",
    "teacher": "Description describe features loss make",
    "teacher.pretrained": "Options load",
    "models": "ARCHITECTURES ConvNet conv count features initialize make",
    "models.architectures": "ARCHITECTURES count make",
    "models.convnet": "ConvNet initialize",
    "models.convolution": "conv depthwise",
    "models.frozen": "Frozen Judged of resized",
    "models.layers": "Conv Linear",
    "models.mobilenet": "MobileNet",
    "models.network": "count features initialize",
    "models.norm": "BatchNorm InstanceNorm LayerNorm",
    "models.plain": "Plain",
    "models.resnet": "ResNet ResNetClassifier",
    "models.starts": "Start",
    "models.vit": "Encoder VisionTransformer",
    "models.winograd": "conv",
    "evaluate": "EDITIONS Options PROTOCOLS Request SourceData Store Target evaluate paired run summary write",
    "evaluate.api": "evaluate write",
    "evaluate.entries": "Entry Trial held_out of_set of_reference",
    "evaluate.figures": "draw",
    "evaluate.options": "Options make edition",
    "evaluate.protocols.table": "PROTOCOLS Settings",
    "evaluate.rates": "best explained usual words",
    "evaluate.sources": "of_run of_features target",
    "evaluate.store": "Store mark",
    "evaluate.suite": "Request check run",
    "evaluate.tables": "differences markdown",
    "evaluate.training": "Rate Settings train fresh",
    "evaluate.extraction": "calibrate extract",
    "evaluate.protocols.probes": (
        "linear fit_linear linear_krr_st fit_linear_krr_st lbfgs few_labels draw_fraction knn few_shot feature_r2"
    ),
    "evaluate.protocols.probes.krr_st": "SgdSettings",
    "evaluate.protocols.probes.mkdt": "LbfgsSettings",
    "evaluate.protocols.probes.neighbours": "knn",
    "evaluate.protocols.probes.regression": "R2 feature_r2",
    "evaluate.protocols.probes.shots": "draw_shots",
    "evaluate.protocols.probes.standard": "LinearSettings fit_linear",
    "evaluate.protocols.finetune": "Settings run with_head augment step",
    "evaluate.protocols.zero_shot": "Settings run train_teacher accuracy loss step",
    "evaluate.protocols.diff_augment": "FAMILIES augment",
    "formats": "FORMS WRITABLE Summary read write",
    "export": "main",
    "cli.console": "answer",
    "data.preprocess": "Preprocessing fit",
    "training.streaming": "Pairs feed fits gather run",
    "data.mapped": "read write",
    "data.cache": "Cache",
    "training.epochs": "run",
    "training.loop": "run Training",
    "training.checkpoints": "Checkpoints",
    "runtime.files": "write_tensors read_tensors",
    "config": "default validate find edit folder_argument EDITIONS",
    "data": "",
    "data.targets": "NAMES settings load adapt",
    "data.conversion": "to_images to_features to_array",
    "data.labels": "Classes check classes",
    "data.metadata": "without",
    "data.splits": "Split find kind_of",
    "data.walk": "Files files_below subfolders",
    "data.folder": "Survey survey open_folder",
    "data.images": "decode upright resize to_channels",
    "data.aircraft_files": "find list_images open_files",
    "report.figures": "draw table",
    "report": "TITLES digits draw table Record Side compare read side_of upgrade write",
    "report.statistics": "paired summary words",
    "runtime.history": "note read",
    "cli.arguments": "parse equivalent typed",
    "runtime.memory": "",
    "api.photos": "choose describe",
    "dry_run": "",
    "pipeline": "run plan STAGES",
    "main": "main",
}
MODULES = {name: importlib.import_module(f"ssdd_jax.{name}".rstrip(".")) for name in NAMES}


def functions():
    """Public functions of these modules, and the public methods of their classes, by name."""
    found = {}
    for name, module in MODULES.items():
        for attribute, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if attribute.startswith("_") or not own:
                continue
            if inspect.isclass(value):
                methods = {k: v for k, v in vars(value).items() if not k.startswith("_") and inspect.isfunction(v)}
                found |= {f"{name}.{attribute}.{k}": v for k, v in methods.items() if _written_here(v, module)}
            elif callable(value):
                found[f"{name}.{attribute}"] = value
    return found


def _written_here(function, module):
    return inspect.getsourcefile(inspect.unwrap(function)) == module.__file__


FUNCTIONS = functions()


@pytest.mark.parametrize("name", NAMES)
def test_promised_names_exist(name):
    missing = [attribute for attribute in NAMES[name].split() if not hasattr(MODULES[name], attribute)]
    assert not missing
    assert MODULES[name].__doc__


def parameters(function):
    return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]


def check(problem):
    """Fails with the names of all functions that have the problem."""
    assert [name for name, function in FUNCTIONS.items() if problem(function)] == []


def test_there_is_something_to_check():
    assert len(FUNCTIONS) > 80


def test_everything_is_annotated():
    def problem(function):
        annotations = [p.annotation for p in parameters(function)]
        return inspect.Parameter.empty in [*annotations, inspect.signature(function).return_annotation]

    check(problem)


def test_a_key_comes_first():
    """A PRNG key, that is, not that of a config."""

    def problem(function):
        later = parameters(function)[1:]
        return any(p.name in ("key", "keys") and "Array" in str(p.annotation) for p in later)

    check(problem)


def test_at_most_five_positional_parameters():
    check(lambda function: sum(p.kind is not p.KEYWORD_ONLY for p in parameters(function)) > 5)


def test_at_most_eleven_parameters():
    """`budget.plan` has the most: the sizes of everything."""
    check(lambda function: len(parameters(function)) > 11)


def test_everything_has_a_docstring():
    check(lambda function: not (inspect.getdoc(function) or "").strip())


# Arrays of whatever shape, and a PRNG key.
ANY_SHAPE = {"write_array", "read_array", "fingerprint", "Run.key"}


def test_docstrings_say_shapes():
    """Of whatever takes or returns arrays: `(M,H,W,C)` and the like in backquotes, or the word scalar."""

    def problem(function):
        if function.__qualname__ in ANY_SHAPE:
            return False
        arrays = [p.annotation for p in parameters(function) if p.name != "key"]
        arrays.append(inspect.signature(function).return_annotation)
        if not any("Array" in str(annotation) or "ndarray" in str(annotation) for annotation in arrays):
            return False
        text = inspect.getdoc(function) or ""
        return "(" not in "".join(text.split("`")[1::2]) and "scalar" not in text

    check(problem)


IMPORTS = f"""
import sys
import ssdd_jax
assert not {{"tensorflow", "torch", "tensorflow_datasets", "matplotlib"}} & set(sys.modules)
import {", ".join(f"ssdd_jax.{name}".rstrip(".") for name in NAMES)}
assert not {{"tensorflow", "torch"}} & set(sys.modules)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""


@pytest.mark.medium
def test_imports_are_light():
    """Neither TensorFlow nor PyTorch, and no device is touched before something is computed."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
