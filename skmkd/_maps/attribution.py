"""Gradients of the loss with respect to the pixels, as maps of how anomalous each pixel is.

Each method takes a batch of images (n, 3, H, W) and returns a raw map for each, (n, H, W), higher
where it is more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skmkd._maps.discrepancy import Features
from skmkd._runtime import private_generator

Network = Callable[[Tensor], Features]
Loss = Callable[[Features, Features], Tensor]  # source's and cloner's features -> (n,)

METHODS = ("discrepancy", "gradient", "smooth_grad", "guided_backprop")
OPTIONS: dict[str, Any] = {
    "through_source": False,
    "n_samples": 16,
    "noise": 0.1,
    "value": False,
}
USED = {  # gradient method -> options that it uses
    "gradient": ("through_source",),
    "smooth_grad": ("through_source", "n_samples", "noise"),
    "guided_backprop": ("through_source",),
}
RECTIFIERS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
BOUNDED = {F.relu6, F.hardtanh}  # what nn.ReLU6 calls


def input_gradient(
    source: Network, cloner: Network, loss: Loss, images: Tensor, through_source: bool
) -> Tensor:  # (n, 3, H, W)
    """Gradient of the loss by the pixels (MKD, Eq. 5), through the cloner or both networks.

    In eval mode the images of a batch do not affect each other, so the gradient of the summed
    losses holds the gradient of each.
    """
    with torch.enable_grad():
        pixels = images.clone().requires_grad_()
        target = source(pixels if through_source else images)
        (gradient,) = torch.autograd.grad(loss(target, cloner(pixels)).sum(), pixels)
    return gradient


def gradient(
    source: Network, cloner: Network, loss: Loss, images: Tensor, through_source: bool = False
) -> Tensor:
    """Absolute gradient, summed over colour channels."""
    return input_gradient(source, cloner, loss, images, through_source).abs().sum(1)


def guided_backprop(
    source: Network, cloner: Network, loss: Loss, images: Tensor, through_source: bool = False
) -> Tensor:
    """Absolute gradient, negative gradients set to 0 at each ReLU (Springenberg et al., 2015)."""
    with _GuidedReLU():
        return gradient(source, cloner, loss, images, through_source)


class _GuidedReLU(TorchFunctionMode):
    """Register a hook on the output tensor of each ReLU; modules are not changed."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in RECTIFIERS | BOUNDED and output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0))
        return output


def smooth_grad(
    source: Network,
    cloner: Network,
    loss: Loss,
    images: Tensor,
    through_source: bool = False,
    *,
    n_samples: int,
    noise: float,
    seed: int,
) -> Tensor:
    """Absolute gradient averaged over noisy copies of each image (Smilkov et al., 2017).

    The noise is Gaussian; its standard deviation is `noise` times the range of the image's values.
    All images get the same draws, so that a map does not depend on other images in the batch.
    """
    generator = private_generator(seed)
    spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(images)
    for _ in range(n_samples):
        draw = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32).to(images)
        total += input_gradient(source, cloner, loss, images + spread * draw, through_source)
    return (total / n_samples).abs().sum(1)


def gradient_map(
    method: str,
    source: Network,
    cloner: Network,
    loss: Loss,
    images: Tensor,
    target: Features,
    options: Mapping[str, Any],
    seed: int,
) -> Tensor:
    """Compute the raw map of a gradient method; `target` are the source's features."""
    through_source = options["through_source"]
    if method == "smooth_grad":
        return smooth_grad(
            source, cloner, loss, images, through_source,
            n_samples=options["n_samples"], noise=options["noise"], seed=seed,
        )  # fmt: skip
    attribute = gradient if method == "gradient" else guided_backprop
    known = source if through_source else lambda _: target
    return attribute(known, cloner, loss, images, through_source)
