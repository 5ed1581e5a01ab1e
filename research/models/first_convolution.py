"""The first convolution of a network whose input image has a gradient, as behind a trained stem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


def with_fast_input_gradient(network: nn.Module) -> None:
    """Let the first convolution of a network be a ``FirstConv2d``, with its parameters.

    Does nothing where that is no faster: with a stride other than 2, or a kernel below 5×5.
    """
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(convolutions, ("", None))
    if (
        first is None
        or type(first) is not nn.Conv2d
        or isinstance(first.padding, str)
        or len({*first.kernel_size}) > 1
        or len({*first.padding}) > 1
        or first.kernel_size[0] < 5
        or first.stride != (2, 2)
        or (first.dilation, first.groups, first.padding_mode) != ((1, 1), 1, "zeros")
    ):
        return
    inputs, outputs, has_bias = first.in_channels, first.out_channels, first.bias is not None
    size, padding = first.kernel_size[0], first.padding[0]
    # On the meta device: its own initial values would advance the random generator.
    own = FirstConv2d(inputs, outputs, size, 2, padding, bias=has_bias, device="meta")
    own.load_state_dict(first.state_dict(), assign=True)
    network.set_submodule(name, own)


class FirstConv2d(nn.Conv2d):
    """A square convolution of stride 2; on a CPU, its input's gradient takes half of the time."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not (input.requires_grad and torch.is_grad_enabled()):
            return super().forward(input)
        output: Tensor = _Convolution.apply(input, self.weight, self.bias, self.padding[0])
        return output


class _Convolution(torch.autograd.Function):
    """A convolution of stride 2 with ``input_gradient``; the rest is PyTorch's."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None, padding: int
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.padding = padding  # type: ignore[attr-defined]
        return F.conv2d(input, weight, bias, stride=2, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, padding = gradients[0], ctx.padding
        # With autocast, the output has another type than what is saved.
        input, weight = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        height, width = input.shape[2:]
        of_input = input_gradient(gradient, weight, padding, (height, width))
        needed = [False, *ctx.needs_input_grad[1:3]]
        sizes = [len(weight)] if needed[2] else None
        steps = [2, 2], [padding, padding], [1, 1], False, [0, 0], 1
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, input, weight, sizes, *steps, needed
        )
        return of_input, of_weight, of_bias, None


def input_gradient(gradient: Tensor, weight: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
    """The gradient of the input of a convolution of stride 2, as one convolution of stride 1.

    Its outputs are the four pixels of each position at half resolution (Shi et al., 2016), so that
    it has four times the channels, and every second weight of each row and column for each pixel.

    Args:
        gradient: of the output, [B, O, h, w].
        weight: [O, C, K, K], K of at least 2.
        padding: zeros on each side of the input, less than K.
        size: H and W of the input.

    Returns:
        [B, C, H, W].
    """
    outputs, channels, kernel, _ = weight.shape
    # Pixel 2q + r, r of 0 and 1, has weight 2t + r + padding of output q - t, first ≤ t ≤ last.
    first, last = -((padding + 1) // 2), (kernel - 1 - padding) // 2
    taps = last - first + 1
    before, after = -(2 * first + padding), 2 * last + 1 + padding - (kernel - 1)
    weight = F.pad(weight, (before, after, before, after))
    weight = weight.view(outputs, channels, taps, 2, taps, 2).permute(1, 3, 5, 0, 2, 4)
    weight = weight.reshape(4 * channels, outputs, taps, taps).flip(2, 3)
    positions = [(side + 1) // 2 for side in size]
    missing = [q - 1 - first - (n - 1) for q, n in zip(positions, gradient.shape[2:], strict=True)]
    # Symmetric, which needs no copy of the gradient; what is too much is cut off.
    around = max(last, *missing)
    pixels = F.conv2d(gradient, weight, padding=around)
    rows, columns = (slice(around - last, around - last + q) for q in positions)
    return F.pixel_shuffle(pixels[:, :, rows, columns], 2)[:, :, : size[0], : size[1]]
