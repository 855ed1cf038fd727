"""Networks of PyTorch's modules that several tests compare with; PyTorch is passed in, so that a test can skip."""

import numpy as np


def channels_first(torch, images):
    """A tensor `(B,C,H,W)`, contiguous, of images `(B,H,W,C)`.

    A transposed array that is not copied is a tensor in `channels_last` format. With such inputs oneDNN 3.12 returns
    wrong gradients of the weights of 1x1 convolutions of stride 2 in float32 on CPUs with AVX2 but no AVX-512: it reads
    memory that was never written, so that they also differ from run to run.
    """
    return torch.from_numpy(np.array(np.moveaxis(images, -1, 1), order="C"))


def torch_resnet(torch, width, channels):
    """The same network from torch's modules: module names follow the flax ones."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut_norm = nn.BatchNorm2d(outputs)

        def forward(self, x):
            y = torch.relu(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
            if hasattr(self, "shortcut"):
                x = self.shortcut_norm(self.shortcut(x))
            return torch.relu(x + y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(channels, width, 3, 1, 2, bias=False)
            self.stem_norm = nn.BatchNorm2d(width)
            inputs = width
            for stage in range(4):
                outputs = width * 2**stage
                for block in range(2):
                    stride = 2 if stage and not block else 1
                    setattr(self, f"stage{stage + 1}_block{block + 1}", Block(inputs, outputs, stride))
                    inputs = outputs

        def forward(self, x):
            x = torch.relu(self.stem_norm(self.stem(x)))
            for stage in range(4):
                for block in range(2):
                    x = getattr(self, f"stage{stage + 1}_block{block + 1}")(x)
            return x.mean((2, 3))

    return Net().double()


def variables_of(module):
    """Flax variables from a torch network, float64."""
    names = {"running_mean": "mean", "running_var": "var", "weight": "scale", "bias": "bias"}
    out = {"params": {}, "batch_stats": {}}
    for name, value in module.state_dict().items():
        *path, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        value = value.numpy().copy()
        collection = "batch_stats" if leaf.startswith("running") else "params"
        leaf = "kernel" if value.ndim == 4 else names[leaf]
        node = out[collection]
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return out
