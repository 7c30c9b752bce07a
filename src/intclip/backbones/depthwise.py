"""Depthwise convolution whose weight gradient is fast on a CPU.

oneDNN computes the weight gradient of a depthwise convolution fast up to three columns; at five columns it is four to
five times slower (docs/lab-book/lite-deep-layers.md). A kernel's columns are independent, so the gradient is computed
in strips of three columns, each against the input shifted accordingly.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 3
"""Columns of a kernel whose weight gradient is computed at once."""

Padding = tuple[int, int, int, int]
"""Left, right, top, bottom, as in `torch.nn.functional.pad`."""


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: Padding) -> Tensor:
    """Convolve each channel of x (B, C, H, W), channels-last, with its own kernel (C, 1, k, k); `bias` is (C,).

    The result equals `torch.nn.functional.conv2d`. Only the computation of the weight gradient differs, and only for
    wide kernels that train on a CPU in full precision.
    """
    wide = weight.shape[-1] > STRIP and torch.is_grad_enabled() and weight.requires_grad
    if wide and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return _stripwise(x, weight, bias, stride, padding)
    return _convolve(x, weight, bias, stride, padding)[0]


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: Padding
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return the convolution, its input, and the symmetric padding that it applied itself."""
    left, right, top, bottom = padding
    even = (top, left)
    if left != right or top != bottom:
        x, even = F.pad(x, padding), (0, 0)
    return F.conv2d(x, weight, bias, stride, even, groups=weight.shape[0]), x, even


class _StripwiseDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: Padding) -> Tensor:
        out, padded, ctx.even = _convolve(x, weight, bias, stride, padding)
        ctx.save_for_backward(padded, weight)
        ctx.stride = stride
        ctx.crop = None if padded is x else padding
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _backward(grad, x, weight, ctx.stride, ctx.even, weight_only=False)
            if ctx.crop is not None:
                left, right, top, bottom = ctx.crop
                grad_x = grad_x[:, :, top : grad_x.shape[2] - bottom, left : grad_x.shape[3] - right]
        if ctx.needs_input_grad[1]:
            down, across = ctx.even
            x = F.pad(x, (across, across, 0, 0)) if across else x
            width, columns = x.shape[3], weight.shape[3]
            starts = range(0, columns, STRIP)
            strips = [(start, min(start + STRIP, columns)) for start in starts]
            grad_weight = torch.cat(
                [
                    _backward(
                        grad,
                        x[..., start : width - columns + end],
                        weight[..., start:end],
                        ctx.stride,
                        (down, 0),
                        weight_only=True,
                    )
                    for start, end in strips
                ],
                dim=3,
            )
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


# `Function.apply` has no types; this is its signature.
_stripwise: Callable[[Tensor, Tensor, Tensor, int, Padding], Tensor] = _StripwiseDepthwise.apply


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], *, weight_only: bool
) -> Tensor:
    """Compute PyTorch's own gradient with respect to the weight, or else to the input."""
    mask = [not weight_only, weight_only, False]
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride, stride], list(padding), [1, 1], False, [0, 0], weight.shape[0], mask
    )
    out: Tensor = gradients[int(weight_only)]
    return out
