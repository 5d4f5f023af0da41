"""Classifiers: small built-in networks, the paper's ResNet-18, and any module of transformers or torch."""

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from ..files import atomic_path, write_json
from ..saliency.scores import eval_mode
from .examples import Examples, Normalization

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "classifier.json"


def mlp(shape: tuple[int, ...], num_classes: int, width: int = 128) -> nn.Module:
    """Two hidden layers, for inputs of any shape."""
    size = int(torch.tensor(shape).prod())
    return _named(
        flat=nn.Flatten(), hidden1=nn.Linear(size, width), act1=nn.ReLU(),
        hidden2=nn.Linear(width, width), act2=nn.ReLU(), head=nn.Linear(width, num_classes),
    )  # fmt: skip


def cnn(shape: tuple[int, ...], num_classes: int, width: int = 16) -> nn.Module:
    """Two convolutions with stride 2 and a hidden layer, for pictures of 8 to 32 pixels."""
    channels, height, across = shape
    size = 2 * width * (-(-height // 4)) * (-(-across // 4))
    return _named(
        conv1=nn.Conv2d(channels, width, 3, stride=2, padding=1), act1=nn.ReLU(),
        conv2=nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), act2=nn.ReLU(),
        flat=nn.Flatten(), hidden=nn.Linear(size, 128), act3=nn.ReLU(), head=nn.Linear(128, num_classes),
    )  # fmt: skip


def _named(**layers: nn.Module) -> nn.Module:
    """Layers one after the other, with names that a mask's table can show."""
    return nn.Sequential(OrderedDict(layers))


def resnet18(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """ResNet-18 with the 3×3 stem that CIFAR's small pictures need, as the paper has it (arXiv 2310.12508, app. C)."""
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.resnet.modeling_resnet import ResNetConvLayer

    config = ResNetConfig(
        num_channels=shape[0], embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
        layer_type="basic",
    )  # fmt: skip
    config.num_labels = num_classes
    model = ResNetForImageClassification(config)
    model.resnet.embedder.embedder = ResNetConvLayer(shape[0], 64, kernel_size=3, stride=1)
    setattr(model.resnet.embedder, "pooler", nn.Identity())  # noqa: B010, of another class
    model.init_weights()
    return model


ARCHITECTURES = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18}


def build(architecture: str, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """A network of ARCHITECTURES with fresh weights, for inputs of `shape`; the global random state stays as it is."""
    if architecture != "mlp" and len(shape) != 3:
        raise ValueError(f"{architecture} reads pictures (C, H, W); these inputs are {shape}: use --model mlp.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](shape, num_classes)


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """The same network with new random weights, for retraining.

    transformers' models are made again from their config; in others, every layer that has `reset_parameters` draws its
    weights anew. ValueError where parameters would keep their values.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if hasattr(model, "config") and hasattr(type(model), "from_pretrained") and _is_stock(model):
            return type(model)(model.config).to(next(model.parameters()).device)
        new = copy.deepcopy(model)
        reset: set[int] = set()
        for module in new.modules():
            if callable(redraw := getattr(module, "reset_parameters", None)):
                redraw()
                reset |= {id(p) for p in module.parameters(recurse=False)}
        left = [name for name, p in new.named_parameters() if id(p) not in reset]
        if left:
            raise ValueError(
                f"{type(model).__name__} cannot be retrained from scratch: no layer redraws {', '.join(left[:3])}. "
                "Give the module that holds them a reset_parameters method."
            )
        return new


def _is_stock(model: Any) -> bool:
    """Whether the config alone makes this network: one that was changed afterwards has other parameters."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return own == {name: tuple(p.shape) for name, p in plain.named_parameters()}


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """(B, classes): of a module that returns them, or an output that has `.logits`."""
    output = model(inputs)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ValueError(f"{type(model).__name__} must return logits (B, classes) or an output with them, got {shown}.")
    return logits


def num_classes_of(model: nn.Module, examples: Examples) -> int:
    """How many classes the model tells apart, asked of one example."""
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad():
        return logits_of(model, examples.batch(torch.arange(1), device)).shape[1]


def head_of(model: nn.Module, num_classes: int) -> tuple[nn.Module, str, nn.Linear]:
    """The last linear layer that gives the logits, with the module that holds it and its name there."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer with {num_classes} outputs at its end, which boundary-expand "
            "widens by one class; use another method."
        )
    name, head = found[-1]
    parent, _, child = name.rpartition(".")
    return model.get_submodule(parent), child, head


def load_classifier(source: str, shape: tuple[int, ...], num_classes: int) -> tuple[nn.Module, Normalization | None]:
    """A trained classifier from a folder of ours, or of transformers by folder or hub id (safetensors only).

    Returns it with the normalization that its preprocessor asks for, None where it has none.
    """
    folder = Path(source).expanduser()
    if (folder / CONFIG_FILE).is_file():
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        given = list(shape), num_classes
        if given != (config["shape"], config["num_classes"]):
            raise ValueError(
                f"{folder} holds a classifier of {config['num_classes']} classes for inputs {tuple(config['shape'])}; "
                f"the data set has {num_classes} classes of inputs {shape}."
            )
        model = build(config["architecture"], tuple(config["shape"]), config["num_classes"], 0)
        load_model(model, folder / WEIGHTS_FILE)
        return model, None
    from transformers import AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source!r} is neither one of {', '.join(ARCHITECTURES)} nor a classifier that could be loaded: {error}"
        ) from error
    return model, _normalization(source)


def _normalization(source: str) -> Normalization | None:
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(source)
    except OSError:
        return None
    mean, std = values.get("image_mean"), values.get("image_std")
    return Normalization(mean=tuple(mean), std=tuple(std)) if mean and std else None


def save_classifier(model: nn.Module, folder: Path, architecture: str | None, shape: tuple[int, ...], classes: int):
    """Write a network of ours, or any of transformers in its own format; a plain module as its weights alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if architecture is None and hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)  # type: ignore[operator]
        return
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_model(model, str(temporary))
    if architecture is not None:
        write_json(folder / CONFIG_FILE, {"architecture": architecture, "shape": list(shape), "num_classes": classes})
