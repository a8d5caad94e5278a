"""Image networks by name from timm (`timm:NAME`) and Hugging Face transformers (`hf:NAME`), where installed."""

import difflib
from typing import Any

from torch import Tensor, nn

PRETRAINED = "pretrained"


def timm(name: str, shape: tuple[int, int, int], classes: int, pretrained: bool) -> nn.Module:
    """timm.create_model(name) for these channels and classes."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"network.name is 'timm:{name}', which needs timm: pip install timm") from None
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"network.name is 'timm:{name}', but timm {timm.__version__} has no such model{hint}")
    settings = {"pretrained": pretrained, "in_chans": shape[0], "num_classes": classes}
    try:
        return timm.create_model(name, img_size=shape[1:], **settings)
    except TypeError:  # convolutional networks take any size, and no argument for it
        return timm.create_model(name, **settings)


class Logits(nn.Module):
    """A model of transformers that takes images and returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def hf(name: str, shape: tuple[int, int, int], classes: int, pretrained: bool) -> nn.Module:
    """The image classifier of a hub name or a local folder; with its published weights, but for the head, or fresh."""
    try:
        import transformers
    except ImportError:
        raise ValueError(f"network.name is 'hf:{name}', which needs transformers: pip install transformers") from None
    try:
        settings: dict[str, Any] = {"num_labels": classes}
        config = transformers.AutoConfig.from_pretrained(name, **settings)
        for key, value in (("image_size", shape[1]), ("num_channels", shape[0])):
            if isinstance(getattr(config, key, None), int):
                setattr(config, key, value)
        models = transformers.AutoModelForImageClassification
        if pretrained:
            return Logits(models.from_pretrained(name, config=config, ignore_mismatched_sizes=True))
        return Logits(models.from_config(config))
    except (OSError, ValueError) as error:
        raise ValueError(f"network.name is 'hf:{name}': {' '.join(str(error).split())}") from None


HUBS = {"timm": timm, "hf": hf}
