"""Networks of PyTorch's modules with the names of each origin, small, and with random running statistics."""

import torch
from torch import nn


class Padded(nn.Module):
    """The shortcut without parameters (option A): every second pixel, channels of zeros on both sides."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels // 2, self.channels // 2))


def _downsample(inputs, outputs, stride, projection):
    if stride == 1 and inputs == outputs:
        return None
    if not projection:
        return Padded(outputs - inputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck, projection):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        shapes = shapes if bottleneck else [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.count = len(shapes)
        for k, (i, o, size, step) in enumerate(shapes, 1):
            setattr(self, f"conv{k}", nn.Conv2d(i, o, size, step, size // 2, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(o))
        self.downsample = _downsample(inputs, outputs, stride, projection)

    def forward(self, x):
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = torch.relu(y) if k < self.count else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """In torchvision's names."""

    def __init__(self, width=4, blocks=(2, 1, 1, 1), bottleneck=False, stem=3, padding=2, projection=True):
        super().__init__()
        self.stem, self.stages = stem, len(blocks)
        self.conv1 = nn.Conv2d(3, width, stem, 1 if stem == 3 else 2, padding if stem == 3 else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers.append(Block(inputs, width * 2**stage, stride, bottleneck, projection))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1) if self.stem == 7 else x
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class Attention(nn.Module):
    """timm's."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * self.gamma


class TimmBlock(nn.Module):
    def __init__(self, width, heads, hidden, scaled):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1, self.ls2 = (Scale(width), Scale(width)) if scaled else (nn.Identity(), nn.Identity())
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))))


class TimmViT(nn.Module):
    def __init__(self, width=24, heads=2, depth=2, patch=4, side=8, hidden=40, scaled=False):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList([TimmBlock(width, heads, hidden, scaled) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class TorchvisionBlock(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width), nn.Identity()
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class TorchvisionViT(nn.Module):
    def __init__(self, width=24, heads=2, depth=2, patch=4, side=8, hidden=40):
        super().__init__()
        self.conv_proj, self.class_token = nn.Conv2d(3, width, patch, patch), nn.Parameter(torch.randn(1, 1, width))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        blocks = {f"encoder_layer_{i}": TorchvisionBlock(width, heads, hidden) for i in range(depth)}
        self.encoder.layers, self.encoder.ln = nn.ModuleDict(blocks), nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleDict({"head": nn.Linear(width, 5)})

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        for block in self.encoder.layers.values():
            x = block(x)
        return self.encoder.ln(x)[:, 0]


HUGGING_FACE_VIT = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
HUGGING_FACE_RESNET = {
    "conv1.weight": "embedder.embedder.convolution.weight",
    "bn1": "embedder.embedder.normalization",
}


def hugging_face_vit(state):
    """A state in timm's names in those of Hugging Face's files, joint queries, keys and values apart."""
    out = {}
    for name, value in state.items():
        if name.startswith("head."):
            out[name.replace("head", "classifier")] = value
            continue
        new = name
        for here, there in HUGGING_FACE_VIT.items():
            new = new.replace(here, there)
        new = "layernorm" + name[4:] if name.startswith("norm.") else new
        for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=False):
            if "attn.qkv" in name:
                out["vit." + new.replace("attn.qkv", f"attention.attention.{part}")] = piece
        if "attn.qkv" not in name:
            out["vit." + new] = value
    return out


def hugging_face_resnet(state):
    """A state in torchvision's names in those of Hugging Face's files."""
    out = {}
    for name, value in state.items():
        stage, _, rest = name.partition(".")
        if stage.startswith("layer"):
            block, _, rest = rest.partition(".")
            layer, _, leaf = rest.partition(".")
            if layer == "downsample":
                kind, _, leaf = leaf.partition(".")
                new = f"shortcut.{('convolution', 'normalization')[int(kind)]}.{leaf}"
            else:
                kind = "convolution" if layer.startswith("conv") else "normalization"
                new = f"layer.{int(layer[-1]) - 1}.{kind}.{leaf}"
            new = f"encoder.stages.{int(stage[5:]) - 1}.layers.{block}.{new}"
        else:
            new = name.replace("fc.", "classifier.1.")
            for here, there in HUGGING_FACE_RESNET.items():
                new = new.replace(here, there)
        out[new if "classifier" in new else "resnet." + new] = value
    return out


def randomised(network):
    """The network in evaluation mode, with norms that are not what they begin as."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim == 1:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.normal_(0, 0.2)
    return network.eval()
