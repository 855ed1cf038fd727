"""Tensor names of supported networks in other libraries: one table per origin, from this package's names to theirs.

A table maps a layer of this package to a layer of the origin. `{i}`, `{s}`, `{b}` and `{k}` are numbers (a
transformer's block, counted from 0; a ResNet's stage, block and convolution, from 1), `{s0}`, `{b0}` and `{k0}` the
same numbers counted from 0, `{s_child}` a stage's position among the modules of torchvision's ResNet. `{leaf}` stands
for PyTorch's name of a layer's tensor. A tuple of layers is concatenated into one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ssdd_jax.teacher.pretrained.positions import DINOV2, HUGGING_FACE, TORCHVISION, Rule

Table = Mapping[str, str | tuple[str, ...]]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""PyTorch's names of a layer's tensors; parameters without a layer (`class_token`) are in the tables."""

SECOND = frozenset(("momentum", "ema", "averaged", "swa", "shadow", "target", "key", "k", "decoder", "predictor"))
"""Words in the prefix of a method's second network, such as `encoder_k.`: its average over the training, or a head."""
COUNTERS = frozenset(("num_batches_tracked", "position_ids", "mask_token"))
"""Last parts of names of tensors in a network that no feature depends on."""
PARTS = {
    "resnet": r"(conv|bn|layer|stage|block)\d\w*|stem\w*|embedder|encoder",
    "vit": r"(?!decoder)\w*(token|norm|pos|embed|bias|patch)\w*|ln\w*|blocks?\d*|layers|encoder|conv_proj",
}
"""Patterns for the first part of the names below a network's prefix that features may depend on, by kind. Tensors of
all other modules there, such as heads, are set aside."""
NOT_LABELS = r".*(proj|predict|pool|proto|pre_logits).*"
"""Pattern for names of linear layers after the features that do not classify."""


class Origin(NamedTuple):
    """Naming scheme of one library for one kind of network.

    Attributes:
        name: Human-readable name, that of the first library that used these names.
        kind: `resnet` or `vit`.
        table: Table of layers, see the module's docstring; empty for this package's own names.
        anchor: A tensor that identifies this origin; the part of its name before the anchor prefixes all names.
        scales: Maps layers of this package to the origin's factors of their outputs (DINOv2's layer scale).
        epsilon: Epsilon of a transformer's norms, unless a `config.json` specifies it.
        preprocessing: Default preprocessing of its networks, a key of `inputs.CONSTANTS`.
        stem_padding: Padding of its 3x3 stems; None if it is up to the user.
        parts: Pattern for the first part of names that features depend on; empty for that of the kind in `PARTS`.
        positions: Rule by which its transformers interpolate their positions.
    """

    name: str
    kind: str
    table: Table
    anchor: str
    scales: Table = {}
    epsilon: float = 1e-6
    preprocessing: str = "imagenet"
    stem_padding: int | None = None
    parts: str = ""
    positions: Rule = DINOV2

    def names(self, path: str) -> tuple[str, ...]:
        """Return the origin's names, without prefix, of a leaf of this package such as `stem/kernel`."""
        if not self.table:
            return (path.replace("/", "."),)
        layer, _, leaf = path.rpartition("/")
        return _filled(self.table, layer or leaf, LEAVES.get(leaf, leaf))

    def scale(self, path: str) -> tuple[str, ...]:
        """Return the name of the origin's output factor for the layer of a leaf; empty if there is none."""
        layer, _, leaf = path.rpartition("/")
        return _filled(self.scales, layer, leaf) if leaf in ("kernel", "bias") else ()


def _filled(table: Table, layer: str, leaf: str) -> tuple[str, ...]:
    # Placeholders of one letter become named groups of digits; their numbers fill the names of the origin.
    for pattern, targets in table.items():
        match = re.fullmatch(re.sub(r"{(\w)}", r"(?P<\1>\\d+)", pattern), layer)
        if match:
            numbers = {name: int(value) for name, value in match.groupdict().items()}
            numbers |= {f"{name}0": value - 1 for name, value in numbers.items()}
            # Before torchvision's stages there are the stem, its norm, ReLU and max-pool.
            numbers |= {"s_child": numbers["s"] + 3} if "s" in numbers else {}
            names = (targets,) if isinstance(targets, str) else targets
            return tuple(name.format(leaf=leaf, **numbers) for name in names)
    return ()


# torchvision's names, also used by timm, solo-learn, KRR-ST and DINO.
_RESNET = {
    "stem": "conv1.{leaf}",
    "stem_norm": "bn1.{leaf}",
    "stage{s}_block{b}/conv{k}": "layer{s}.{b0}.conv{k}.{leaf}",
    "stage{s}_block{b}/norm{k}": "layer{s}.{b0}.bn{k}.{leaf}",
    "stage{s}_block{b}/shortcut": "layer{s}.{b0}.downsample.0.{leaf}",
    "stage{s}_block{b}/shortcut_norm": "layer{s}.{b0}.downsample.1.{leaf}",
}
# The ResNets of kuangliu's pytorch-cifar, on which much self-supervised code for CIFAR is based.
_CIFAR_RESNET = {
    **_RESNET,
    "stage{s}_block{b}/shortcut": "layer{s}.{b0}.shortcut.0.{leaf}",
    "stage{s}_block{b}/shortcut_norm": "layer{s}.{b0}.shortcut.1.{leaf}",
}
# The children of torchvision's ResNet in an `nn.Sequential`, as in the examples of lightly.
_CHILDREN_RESNET = {
    layer: {"conv1.{leaf}": "0.{leaf}", "bn1.{leaf}": "1.{leaf}"}.get(name, name.replace("layer{s}", "{s_child}"))
    for layer, name in _RESNET.items()
}
_HF_RESNET = {
    "stem": "embedder.embedder.convolution.{leaf}",
    "stem_norm": "embedder.embedder.normalization.{leaf}",
    "stage{s}_block{b}/conv{k}": "encoder.stages.{s0}.layers.{b0}.layer.{k0}.convolution.{leaf}",
    "stage{s}_block{b}/norm{k}": "encoder.stages.{s0}.layers.{b0}.layer.{k0}.normalization.{leaf}",
    "stage{s}_block{b}/shortcut": "encoder.stages.{s0}.layers.{b0}.shortcut.convolution.{leaf}",
    "stage{s}_block{b}/shortcut_norm": "encoder.stages.{s0}.layers.{b0}.shortcut.normalization.{leaf}",
}
# timm's names, also used by DINO, MAE and solo-learn.
_TIMM_VIT = {
    "patches": "patch_embed.proj.{leaf}",
    "class_token": "cls_token",
    "positions": "pos_embed",
    "block{i}/norm1": "blocks.{i}.norm1.{leaf}",
    "block{i}/attention/qkv": "blocks.{i}.attn.qkv.{leaf}",
    "block{i}/attention/out": "blocks.{i}.attn.proj.{leaf}",
    "block{i}/norm2": "blocks.{i}.norm2.{leaf}",
    "block{i}/mlp1": "blocks.{i}.mlp.fc1.{leaf}",
    "block{i}/mlp2": "blocks.{i}.mlp.fc2.{leaf}",
    "norm": "norm.{leaf}",
}
_TORCHVISION_VIT = {
    "patches": "conv_proj.{leaf}",
    "class_token": "class_token",
    "positions": "encoder.pos_embedding",
    "block{i}/norm1": "encoder.layers.encoder_layer_{i}.ln_1.{leaf}",
    "block{i}/attention/qkv": "encoder.layers.encoder_layer_{i}.self_attention.in_proj_{leaf}",
    "block{i}/attention/out": "encoder.layers.encoder_layer_{i}.self_attention.out_proj.{leaf}",
    "block{i}/norm2": "encoder.layers.encoder_layer_{i}.ln_2.{leaf}",
    "block{i}/mlp1": "encoder.layers.encoder_layer_{i}.mlp.0.{leaf}",
    "block{i}/mlp2": "encoder.layers.encoder_layer_{i}.mlp.3.{leaf}",
    "norm": "encoder.ln.{leaf}",
}
_MMPRETRAIN_VIT = {
    "patches": "patch_embed.projection.{leaf}",
    "class_token": "cls_token",
    "positions": "pos_embed",
    "block{i}/norm1": "layers.{i}.ln1.{leaf}",
    "block{i}/attention/qkv": "layers.{i}.attn.qkv.{leaf}",
    "block{i}/attention/out": "layers.{i}.attn.proj.{leaf}",
    "block{i}/norm2": "layers.{i}.ln2.{leaf}",
    "block{i}/mlp1": "layers.{i}.ffn.layers.0.0.{leaf}",
    "block{i}/mlp2": "layers.{i}.ffn.layers.1.{leaf}",
    "norm": "ln1.{leaf}",
}
_HF_ENDS: Table = {
    "patches": "embeddings.patch_embeddings.projection.{leaf}",
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "norm": "layernorm.{leaf}",
}
_HF_ATTENTION: Table = {
    "block{i}/attention/qkv": tuple(
        f"encoder.layer.{{i}}.attention.attention.{part}.{{leaf}}" for part in ("query", "key", "value")
    ),
    "block{i}/attention/out": "encoder.layer.{i}.attention.output.dense.{leaf}",
}
_HF_VIT: Table = {
    **_HF_ENDS,
    **_HF_ATTENTION,
    "block{i}/norm1": "encoder.layer.{i}.layernorm_before.{leaf}",
    "block{i}/norm2": "encoder.layer.{i}.layernorm_after.{leaf}",
    "block{i}/mlp1": "encoder.layer.{i}.intermediate.dense.{leaf}",
    "block{i}/mlp2": "encoder.layer.{i}.output.dense.{leaf}",
}
# Names of the modules in transformers 5; its saved files still have the earlier names.
_HF_VIT_5: Table = {
    **_HF_ENDS,
    "block{i}/attention/qkv": tuple(f"layers.{{i}}.attention.{part}_proj.{{leaf}}" for part in "qkv"),
    "block{i}/attention/out": "layers.{i}.attention.o_proj.{leaf}",
    "block{i}/norm1": "layers.{i}.layernorm_before.{leaf}",
    "block{i}/norm2": "layers.{i}.layernorm_after.{leaf}",
    "block{i}/mlp1": "layers.{i}.mlp.fc1.{leaf}",
    "block{i}/mlp2": "layers.{i}.mlp.fc2.{leaf}",
}
_HF_DINOV2: Table = {
    **_HF_ENDS,
    **_HF_ATTENTION,
    "block{i}/norm1": "encoder.layer.{i}.norm1.{leaf}",
    "block{i}/norm2": "encoder.layer.{i}.norm2.{leaf}",
    "block{i}/mlp1": "encoder.layer.{i}.mlp.fc1.{leaf}",
    "block{i}/mlp2": "encoder.layer.{i}.mlp.fc2.{leaf}",
}

ORIGINS = (
    Origin("torchvision", "resnet", _RESNET, "layer1.0.conv1.weight"),
    Origin("pytorch-cifar", "resnet", _CIFAR_RESNET, "layer2.0.shortcut.0.weight", stem_padding=1),
    Origin("torchvision's children", "resnet", _CHILDREN_RESNET, "4.0.conv1.weight", parts="[0-7]"),
    Origin("Hugging Face", "resnet", _HF_RESNET, "encoder.stages.0.layers.0.layer.0.convolution.weight"),
    Origin(
        "timm",
        "vit",
        _TIMM_VIT,
        "blocks.0.attn.qkv.weight",
        scales={"block{i}/attention/out": "blocks.{i}.ls1.gamma", "block{i}/mlp2": "blocks.{i}.ls2.gamma"},
    ),
    Origin(
        "MMPretrain",
        "vit",
        _MMPRETRAIN_VIT,
        "layers.0.attn.qkv.weight",
        scales={
            "block{i}/attention/out": "layers.{i}.attn.gamma1.weight",
            "block{i}/mlp2": "layers.{i}.ffn.gamma2.weight",
        },
        positions=HUGGING_FACE,
    ),
    Origin(
        "torchvision",
        "vit",
        _TORCHVISION_VIT,
        "encoder.layers.encoder_layer_0.ln_1.weight",
        positions=TORCHVISION,
    ),
    Origin(
        "Hugging Face",
        "vit",
        _HF_VIT,
        "encoder.layer.0.layernorm_before.weight",
        epsilon=1e-12,
        preprocessing="half",
        positions=HUGGING_FACE,
    ),
    Origin(
        "Hugging Face",
        "vit",
        _HF_VIT_5,
        "layers.0.layernorm_before.weight",
        epsilon=1e-12,
        preprocessing="half",
        positions=HUGGING_FACE,
    ),
    Origin(
        "Hugging Face's DINOv2",
        "vit",
        _HF_DINOV2,
        "encoder.layer.0.norm1.weight",
        scales={
            "block{i}/attention/out": "encoder.layer.{i}.layer_scale1.lambda1",
            "block{i}/mlp2": "encoder.layer.{i}.layer_scale2.lambda1",
        },
        positions=HUGGING_FACE,
    ),
    Origin("ssdd_jax", "resnet", {}, "stage1_block1.conv1.kernel", preprocessing="dataset"),
    Origin("ssdd_jax", "vit", {}, "block0.attention.qkv.kernel", preprocessing="dataset"),
)
"""All supported origins. An anchor of Hugging Face ends in another one: if both match, the longer anchor applies."""
