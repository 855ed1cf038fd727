"""How others name the tensors of the networks that are known here: one table per origin, names here to names there.

A table maps a layer here to a layer there. `{i}`, `{s}`, `{b}` and `{k}` are numbers (a transformer's block, counted
from 0; a ResNet's stage, block and convolution, from 1), `{s0}`, `{b0}` and `{k0}` the same from 0; `{leaf}` stands for
PyTorch's name of a layer's tensor. Several layers there are joined into one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

Table = Mapping[str, str | tuple[str, ...]]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""PyTorch's names of a layer's tensors; those of single parameters (`class_token`) are in the tables."""

HEADS = frozenset(
    (
        # classifiers, and layers between the features and them
        *("fc", "head", "heads", "classifier", "pooler", "pre_logits"),
        # self-supervised training: what comes after the backbone (`bn` is Barlow Twins'), and queues of MoCo
        *("projector", "predictor", "prototypes", "bn", "queue", "queue_ptr", "dino_loss_func"),
        # the second network of momentum methods
        *("momentum_backbone", "momentum_encoder", "momentum_projector", "momentum_predictor", "momentum_classifier"),
        *("momentum_head", "momentum_prototypes", "encoder_k", "target_encoder"),
        # masked autoencoders
        *("decoder", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm"),
        "decoder_pred",
    )
)
"""First parts of names that are no part of a backbone, and are left aside."""
COUNTERS = frozenset(("num_batches_tracked", "position_ids", "mask_token"))
"""Last parts of names of tensors that no feature depends on."""


class Origin(NamedTuple):
    """How one library names a kind of network.

    Attributes:
        name: For people, of the first library that used these names.
        kind: `resnet` or `vit`.
        table: See above; empty for this package's own names, which need no translation.
        anchor: A tensor that tells this origin from the others; what stands before it is a prefix of all names.
        scales: Layers here, and the factors there of what comes out of them (DINOv2's layer scale).
        epsilon: Of the norms of a transformer, unless a `config.json` says otherwise.
        preprocessing: What its networks are given unless a file says otherwise, a key of `inputs.CONSTANTS`.
    """

    name: str
    kind: str
    table: Table
    anchor: str
    scales: Table = {}
    epsilon: float = 1e-6
    preprocessing: str = "imagenet"

    def names(self, path: str) -> tuple[str, ...]:
        """What a leaf here, such as `stem/kernel`, is called there, without prefix."""
        if not self.table:
            return (path.replace("/", "."),)
        layer, _, leaf = path.rpartition("/")
        return _filled(self.table, layer or leaf, LEAVES.get(leaf, leaf))

    def scale(self, path: str) -> tuple[str, ...]:
        """The factor there of the layer that a leaf here belongs to; nothing where there is none."""
        layer, _, leaf = path.rpartition("/")
        return _filled(self.scales, layer, leaf) if leaf in ("kernel", "bias") else ()


def _filled(table: Table, layer: str, leaf: str) -> tuple[str, ...]:
    for pattern, there in table.items():
        found = re.fullmatch(re.sub(r"{(\w)}", r"(?P<\1>\\d+)", pattern), layer)
        if found:
            numbers = {name: int(value) for name, value in found.groupdict().items()}
            numbers |= {f"{name}0": value - 1 for name, value in numbers.items()}
            return tuple(name.format(leaf=leaf, **numbers) for name in ((there,) if isinstance(there, str) else there))
    return ()


# timm's, solo-learn's, KRR-ST's and DINO's as well.
_RESNET = {
    "stem": "conv1.{leaf}",
    "stem_norm": "bn1.{leaf}",
    "stage{s}_block{b}/conv{k}": "layer{s}.{b0}.conv{k}.{leaf}",
    "stage{s}_block{b}/norm{k}": "layer{s}.{b0}.bn{k}.{leaf}",
    "stage{s}_block{b}/shortcut": "layer{s}.{b0}.downsample.0.{leaf}",
    "stage{s}_block{b}/shortcut_norm": "layer{s}.{b0}.downsample.1.{leaf}",
}
_HF_RESNET = {
    "stem": "embedder.embedder.convolution.{leaf}",
    "stem_norm": "embedder.embedder.normalization.{leaf}",
    "stage{s}_block{b}/conv{k}": "encoder.stages.{s0}.layers.{b0}.layer.{k0}.convolution.{leaf}",
    "stage{s}_block{b}/norm{k}": "encoder.stages.{s0}.layers.{b0}.layer.{k0}.normalization.{leaf}",
    "stage{s}_block{b}/shortcut": "encoder.stages.{s0}.layers.{b0}.shortcut.convolution.{leaf}",
    "stage{s}_block{b}/shortcut_norm": "encoder.stages.{s0}.layers.{b0}.shortcut.normalization.{leaf}",
}
# DINO's, MAE's and solo-learn's as well.
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
# As the module of transformers 5 calls them; what it saves has the names before.
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
    Origin("Hugging Face", "resnet", _HF_RESNET, "encoder.stages.0.layers.0.layer.0.convolution.weight"),
    Origin(
        "timm",
        "vit",
        _TIMM_VIT,
        "blocks.0.attn.qkv.weight",
        scales={"block{i}/attention/out": "blocks.{i}.ls1.gamma", "block{i}/mlp2": "blocks.{i}.ls2.gamma"},
    ),
    Origin("torchvision", "vit", _TORCHVISION_VIT, "encoder.layers.encoder_layer_0.ln_1.weight"),
    Origin(
        "Hugging Face",
        "vit",
        _HF_VIT,
        "encoder.layer.0.layernorm_before.weight",
        epsilon=1e-12,
        preprocessing="half",
    ),
    Origin("Hugging Face", "vit", _HF_VIT_5, "layers.0.layernorm_before.weight", epsilon=1e-12, preprocessing="half"),
    Origin(
        "Hugging Face's DINOv2",
        "vit",
        _HF_DINOV2,
        "encoder.layer.0.norm1.weight",
        scales={
            "block{i}/attention/out": "encoder.layer.{i}.layer_scale1.lambda1",
            "block{i}/mlp2": "encoder.layer.{i}.layer_scale2.lambda1",
        },
    ),
    Origin("ssdd_jax", "resnet", {}, "stage1_block1.conv1.kernel", preprocessing="dataset"),
    Origin("ssdd_jax", "vit", {}, "block0.attention.qkv.kernel", preprocessing="dataset"),
)
"""All that are known. Of the two of Hugging Face with the same anchor, the longer name is meant where both fit."""
