"""Checkpoints as the self-supervised repositories publish them: the backbone is read, all else is set aside and named.

Each layout is that of the repository's saving code, with a small network; the names of the modules beside the backbone
are the repository's, their tensors are stand-ins.
"""

import argparse
import re

import jax
import numpy as np
import pytest

from ssdd_jax.errors import UserError
from ssdd_jax.teacher import pretrained

torch = pytest.importorskip("torch", reason="the checkpoints are PyTorch's")
import teacher_networks as networks  # noqa: E402

MOMENTS = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
WIDTH = {"resnet": 32, "vit": 24}


def backbone(network):
    return {name: value for name, value in network.state_dict().items() if not name.startswith(("fc.", "head."))}


@pytest.fixture(scope="module")
def states():
    """By kind the states of two networks: the one to be read, and a second one."""
    torch.manual_seed(0)
    kinds = {"resnet": lambda: networks.ResNet(blocks=(1, 2, 1, 1)), "vit": lambda: networks.TimmViT(scaled=True)}
    return {kind: [backbone(networks.randomised(make())) for _ in range(2)] for kind, make in kinds.items()}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def layers(*names):
    """Linear layers with the names, and stand-ins for tensors whose names have no layer."""
    return {
        full: torch.zeros(4, 32)
        for name in names
        for full in ((f"{name}.weight", f"{name}.bias") if not name.endswith(("queue", "weight_g")) else (name,))
    }


def renamed(state, table):
    """A state with every name replaced by patterns; a name may match only one of them."""
    out = {}
    for name, value in state.items():
        for pattern, new in table.items():
            if re.match(pattern, name):
                name = re.sub(pattern, new, name, count=1)
                break
        out[name] = value
    return out


def children(state):
    stages = {rf"layer{stage}\.": f"{stage + 3}." for stage in range(1, 5)}
    return renamed(state, {r"conv1\.": "0.", r"bn1\.": "1.", **stages})


def mmpretrain(state):
    inside = {
        r"blocks\.(\d+)\.norm": r"layers.\1.ln",
        r"blocks\.(\d+)\.ls1.gamma": r"layers.\1.attn.gamma1.weight",
        r"blocks\.(\d+)\.ls2.gamma": r"layers.\1.ffn.gamma2.weight",
        r"blocks\.(\d+)\.mlp.fc1": r"layers.\1.ffn.layers.0.0",
        r"blocks\.(\d+)\.mlp.fc2": r"layers.\1.ffn.layers.1",
        r"blocks": "layers",
    }
    return renamed(state, inside | {r"norm": "ln1", r"patch_embed.proj": "patch_embed.projection"})


def lightning(state):
    return {"epoch": 1, "pytorch-lightning_version": "2.0", "state_dict": state, "optimizer_states": [{"state": {}}]}


def training(state, trained=30, **more):
    """The checkpoint of a training loop after the ImageNet example of PyTorch."""
    groups = [{"lr": 0.1, "params": list(range(trained))}]
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": groups}
    return {"epoch": 3, "arch": "resnet50", "state_dict": state, "optimizer": optimizer, **more}


HEAD = ("projector", "predictor")
LAYOUTS = {
    "SwAV, published": (
        "resnet",
        lambda own, _: under("module.", own | layers("projection_head.0", "projection_head.3", "prototypes")),
        {"projection_head", "prototypes"},
    ),
    "SwAV, training": ("resnet", lambda own, _: training(under("module.", own | layers("prototypes"))), {"prototypes"}),
    "MoCo v2": (
        "resnet",
        lambda own, other: training(
            under("module.encoder_q.", own | layers("fc.0", "fc.2"))
            | under("module.encoder_k.", other | layers("fc.0", "fc.2"))
            | {"module.queue": torch.zeros(4, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
        ),
        {"fc", "encoder_k", "queue", "queue_ptr"},
    ),
    "MoCo v1": (
        "resnet",
        lambda own, other: training(
            under("module.encoder_q.", own | layers("fc"))
            | under("module.encoder_k.", other | layers("fc"))
            | {"module.queue": torch.zeros(4, 8)}
        ),
        {"fc", "encoder_k", "queue"},
    ),
    "MoCo v3": (
        "vit",
        lambda own, other: training(
            under("module.base_encoder.", own | layers("head.0", "head.3"))
            | under("module.momentum_encoder.", other | layers("head.0", "head.3"))
            | layers("module.predictor.0"),
            scaler={"scale": 65536.0},
        ),
        {"head", "momentum_encoder", "predictor"},
    ),
    "DINO": (
        "vit",
        lambda own, other: {
            "student": under("module.", under("backbone.", other) | layers("head.mlp.0", "head.last_layer.weight_g")),
            "teacher": under("backbone.", own) | layers("head.mlp.0", "head.last_layer.weight_g"),
            "optimizer": {"state": {}},
            "args": argparse.Namespace(arch="vit_small"),
            "dino_loss": {"center": torch.zeros(1, 8)},
        },
        {"student", "head", "dino_loss"},
    ),
    "DINOv2, published": ("vit", lambda own, _: own | {"mask_token": torch.zeros(1, 24)}, set()),
    "DINOv2, training": (
        "vit",
        lambda own, _: {
            "teacher": under("backbone.", renamed(own, {r"blocks\.(\d+)": r"blocks.0.\1"}))
            | layers("dino_head.mlp.0", "ibot_head.mlp.0")
        },
        {"dino_head", "ibot_head"},
    ),
    "BYOL (byol-pytorch), learner": (
        "resnet",
        lambda own, other: (
            under("net.", own | layers("fc"))
            | under("online_encoder.", under("net.", own | layers("fc")) | layers("projector.net.0"))
            | under("target_encoder.", under("net.", other | layers("fc")) | layers("projector.net.0"))
            | layers("online_predictor.net.0")
        ),
        {"fc", "online_encoder", "target_encoder", "online_predictor"},
    ),
    "SimSiam": (
        "resnet",
        lambda own, _: training(
            under("module.encoder.", own | layers("fc.0", "fc.6")) | layers("module.predictor.0"),
        ),
        {"fc", "predictor"},
    ),
    "VICReg, Barlow Twins": (
        "resnet",
        lambda own, _: {
            "epoch": 3,
            "model": under("module.", under("backbone.", own) | layers("projector.0") | {"bn.running_mean": MEAN}),
            "optimizer": {"state": {}},
        },
        {"projector", "bn"},
    ),
    "lightly, BYOL": (
        "resnet",
        lambda own, other: lightning(
            under("backbone.", own)
            | under("teacher_backbone.", other)
            | layers("projection_head.layers.0", "prediction_head.layers.0", "teacher_projection_head.layers.0")
            | layers("online_classifier.online_classifier")
        ),
        {"teacher_backbone", "projection_head", "prediction_head", "teacher_projection_head", "online_classifier"},
    ),
    "lightly, DINO": (
        "resnet",
        lambda own, other: lightning(under("backbone.", own) | under("student_backbone.", other)),
        {"student_backbone"},
    ),
    "lightly, examples": (
        "resnet",
        lambda own, other: (
            under("backbone.", children(own))
            | under("backbone_momentum.", children(other))
            | layers("projection_head.layers.0", "projection_head_momentum.layers.0")
        ),
        {"backbone_momentum", "projection_head", "projection_head_momentum"},
    ),
    "MMPretrain, BYOL": (
        "resnet",
        lambda own, other: {
            "meta": {"epoch": 200},
            "state_dict": under("backbone.", own)
            | under("target_net.module.0.", other)
            | layers("neck.fc0", "head.predictor.fc0")
            | {"target_net.steps": torch.tensor(7)},
        },
        {"target_net", "neck", "head"},
    ),
    "MMPretrain, MoCo v3": (
        "vit",
        lambda own, other: {
            "state_dict": under("backbone.", mmpretrain(own))
            | under("momentum_encoder.module.0.", mmpretrain(other))
            | layers("neck.fc0", "head.predictor.fc0"),
        },
        {"momentum_encoder", "neck", "head"},
    ),
    "solo-learn, MoCo v2+": (
        "resnet",
        lambda own, other: lightning(
            under("backbone.", own)
            | under("momentum_backbone.", other)
            | layers("classifier", "momentum_classifier", "projector.0", "momentum_projector.0")
            | {"queue": torch.zeros(2, 4, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
        ),
        {
            *("momentum_backbone", "classifier", "momentum_classifier", "projector", "momentum_projector"),
            *("queue", "queue_ptr"),
        },
    ),
    "MAE": (
        "vit",
        lambda own, _: {
            "model": own
            | {"mask_token": torch.zeros(1, 1, 24), "decoder_pos_embed": torch.zeros(1, 5, 8)}
            | layers("decoder_embed", "decoder_blocks.0.attn.qkv", "decoder_norm", "decoder_pred")
        },
        {"decoder_pos_embed", "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"},
    ),
    "weights and their average": (
        "vit",
        lambda own, other: {"state_dict": own, "state_dict_ema": other},
        {"state_dict_ema"},
    ),
    "numbers beside the state": (
        "resnet",
        lambda own, _: training(under("module.", own), best_acc1=torch.tensor([63.2]), best=np.float64(0.6)),
        {"best_acc1"},
    ),
}
MEAN = torch.zeros(8)


def loaded(path):
    return pretrained.load(
        str(path), image_shape=(8, 8, 3), moments=MOMENTS, options=pretrained.Options(heads=2, stem_padding=1)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_checkpoints_give_their_backbone(layout, states, tmp_path):
    kind, make, aside = LAYOUTS[layout]
    own, other = states[kind]
    torch.save(own, tmp_path / "plain")
    torch.save(make(own, other), tmp_path / "checkpoint")
    wanted, _ = loaded(tmp_path / "plain")
    found, description = loaded(tmp_path / "checkpoint")
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert set(description.aside) == aside
    assert not description.supervised


LABELLED = {
    "torchvision": lambda own: own | layers("fc"),
    "akamaster": lambda own: {"best_prec1": 93.6, "state_dict": under("module.", own | layers("linear"))},
    "Hugging Face": lambda own: under("resnet.", own) | layers("classifier.1"),
    "ImageNet example": lambda own: training(
        under("module.", own | layers("fc")), best_acc1=torch.tensor(7.0, dtype=torch.float64)
    ),
    "Sequential": lambda own: {"model": under("module.0.", own) | layers("module.1")},
}


@pytest.mark.parametrize("layout", LABELLED)
def test_a_classifier_alone_makes_a_supervised_teacher(layout, states, tmp_path):
    torch.save(LABELLED[layout](states["resnet"][0]), tmp_path / "file")
    description = loaded(tmp_path / "file")[1]
    assert description.supervised and description.words.startswith("supervised ResNet-12 of width 4")


def test_layers_after_the_features_that_do_not_classify(states, tmp_path):
    for head in ("projection_head", "pooler.dense", "prototypes"):
        torch.save(states["resnet"][0] | layers(head), tmp_path / "file")
        assert not loaded(tmp_path / "file")[1].supervised
    # MoCo's and SimSiam's linear evaluation: only the classifier is trained.
    evaluated = training(under("module.", states["resnet"][0] | layers("fc")), trained=2)
    torch.save(evaluated, tmp_path / "file")
    assert not loaded(tmp_path / "file")[1].supervised
    # Lightning, and with it solo-learn, saves a list of optimizers.
    content = lightning(under("backbone.", states["resnet"][0]) | layers("classifier"))
    torch.save(content | {"optimizer_states": [evaluated["optimizer"]]}, tmp_path / "file")
    assert not loaded(tmp_path / "file")[1].supervised
    torch.save(content | {"optimizer_states": [training({})["optimizer"]]}, tmp_path / "file")
    assert loaded(tmp_path / "file")[1].supervised


def test_what_features_may_depend_on_is_refused(states, tmp_path):
    resnet, vit = states["resnet"][0], states["vit"][0]
    torch.save(under("net.", resnet | layers("layer3.0.se.fc1")) | layers("other"), tmp_path / "resnet")
    with pytest.raises(UserError, match=r"2 left over \(net.layer3.0.se.fc1.bias, net.layer3.0.se.fc1.weight\)"):
        loaded(tmp_path / "resnet")
    for name in ("register_tokens", "norm_pre.weight", "rel_pos_bias"):
        torch.save({"model": vit | {name: torch.zeros(1, 4, 24)}}, tmp_path / "vit")
        with pytest.raises(UserError, match=rf"1 left over \(model.{name}\)"):
            loaded(tmp_path / "vit")


def test_several_networks_are_refused(states, tmp_path):
    own, other = states["resnet"]
    torch.save(under("one.", own) | under("two.", other), tmp_path / "file")
    with pytest.raises(UserError, match="several networks, under 'one.', 'two.'"):
        loaded(tmp_path / "file")
    torch.save(under("momentum_encoder.", own) | under("ema.", own), tmp_path / "file")
    assert loaded(tmp_path / "file")[1].aside == ("momentum_encoder",)  # equal ones: the shorter name


def test_shortcuts_of_networks_for_cifar(tmp_path):
    """pytorch-cifar's projections have other names; both kinds of network pad their stem by one pixel."""
    torch.manual_seed(1)
    network = networks.randomised(networks.ResNet(padding=1))
    state = {name.replace("downsample", "shortcut"): value for name, value in network.state_dict().items()}
    torch.save({"net": state}, tmp_path / "file")
    description = pretrained.load(str(tmp_path / "file"), image_shape=(8, 8, 3), moments=MOMENTS)[1]
    assert "pytorch-cifar under net., 3x3 stem with padding 1" in description.words
    assert description.network.stem_padding == 1 and "the data set's mean and std" in description.words
