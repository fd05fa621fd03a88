"""Networks for images: convolutions before the common encoder, a deconvolution as decoder, and the export of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distindex.corpus.features import Features, ImageFeatures
from distindex.hashing.batch import Rows
from distindex.hashing.distributed import GlobalBatchNorm, world_size
from distindex.hashing.networks import Encoder, forward_exported, glorot_linear

KERNEL, STRIDE, PADDING = 3, 2, 1


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """What an image network reads: uint8 pixels `[B, V]` of images row by row, the channels of a pixel side by side.

    Attributes:
        height: rows of pixels.
        width: pixels in a row.
        mean: mean of each channel over the training corpus, pixels in [0, 1].
        deviation: deviation of each channel.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, features: Features) -> ImageInput | None:
        """The input of a network over these features; None where they are no images."""
        if not isinstance(features, ImageFeatures):
            return None
        config = features.config
        return cls(config.height, config.width, tuple(features.mean_C.tolist()), tuple(features.deviation_C.tolist()))

    @property
    def channels(self) -> int:
        return len(self.mean)

    def standardized(self, x_BV: Tensor, dtype: torch.dtype) -> Tensor:
        """`(pixel / 255 - mean) / deviation` of each channel, `[B, V]`."""
        deviation_C = torch.tensor(self.deviation, dtype=dtype, device=x_BV.device)
        mean_C = torch.tensor(self.mean, dtype=dtype, device=x_BV.device)
        x_BPC = x_BV.to(dtype).view(len(x_BV), -1, self.channels)
        return (x_BPC / (255 * deviation_C) - mean_C / deviation_C).view(len(x_BV), -1)

    def planes(self, x_BV: Tensor) -> Tensor:
        """The same numbers as `[B, C, H, W]`, without moving them: channels stay innermost in memory."""
        return x_BV.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def halved(self, times: int) -> tuple[int, int]:
        """Height and width after so many convolutions of stride 2."""
        return math.ceil(self.height / STRIDE**times), math.ceil(self.width / STRIDE**times)


def flat(x_BCHW: Tensor) -> Tensor:
    """Rows `[B, H W C]`, the channels of a place side by side."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(len(x_BCHW), -1)


class PlaneBatchNorm(GlobalBatchNorm):
    """`GlobalBatchNorm` of each channel over all places of all images of the global batch.

    Its averages may follow faster than those of the layers: a batch has as many values of a channel as places.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.1)

    def forward(self, x_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        if world_size() == 1 or not self.training:
            return F.batch_norm(
                x_BCHW,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum or 0.0,
                self.eps,
            )
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        out_MC = super().forward(x_BHWC.reshape(-1, x_BHWC.shape[-1]))
        return out_MC.view(x_BHWC.shape).permute(0, 3, 1, 2)


class Convolution(nn.Module):
    """[3x3 convolution of stride 2 -> BatchNorm -> ReLU].

    The normalization stands before the ReLU here, so that it folds into the convolution: behind it, its shift
    would not reach the zeros that the next convolution pads with.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, KERNEL, STRIDE, PADDING, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")
        self.norm = PlaneBatchNorm(outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(x_BCHW)))

    def export(self) -> tuple[Tensor, Tensor]:
        """Weight `[out, in, 3, 3]` and bias of the convolution with the normalization in it."""
        scale_C, shift_C = self.norm.inference_affine()
        weight = self.convolution.weight * scale_C[:, None, None, None]
        return weight.contiguous(memory_format=torch.contiguous_format), shift_C.clone()


class ImageEncoder(Encoder):
    """Convolutions that halve height and width, then the layers of `Encoder` over what they give.

    Args:
        image: the input.
        channels: outputs of each convolution.
        hidden: widths of the hidden layers.
        bits: code length K.
        dropout: share of hidden units dropped in training.
    """

    def __init__(
        self, image: ImageInput, channels: Sequence[int], hidden: Sequence[int], bits: int, dropout: float
    ) -> None:
        super().__init__(math.prod(image.halved(len(channels))) * channels[-1], hidden, bits, dropout)
        self.image = image
        self.convolutions = nn.ModuleList(
            Convolution(a, b) for a, b in itertools.pairwise([image.channels, *channels])
        )

    def hidden(self, x_BV: Rows, key: int, row_B: Tensor) -> Tensor:
        """The last hidden layer `hidden_BU` of standardized pixels."""
        assert isinstance(x_BV, Tensor)
        x_BCHW = self.image.planes(x_BV)
        for convolution in self.convolutions:
            x_BCHW = convolution(x_BCHW)
        return super().hidden(flat(x_BCHW), key, row_B)

    @torch.no_grad()
    def export(self) -> list[tuple[Tensor, Tensor]]:
        """The convolutions' weights `[out, in, 3, 3]` and biases, then those of the layers."""
        return [*(convolution.export() for convolution in self.convolutions), *super().export()]  # type: ignore[operator]


class ImageDecoder(nn.Module):
    """From codes to pixels `[B, V]`: a linear layer, then transposed convolutions that double height and width.

    What exceeds the image is cut off. The output is a logit or a mean, as the likelihood has it.
    """

    def __init__(self, bits: int, image: ImageInput, channels: Sequence[int] = (32, 16, 8)) -> None:
        super().__init__()
        self.image, self.start = image, (*image.halved(len(channels)), channels[0])
        self.first = glorot_linear(bits, math.prod(self.start))
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, STRIDE, PADDING) for a, b in itertools.pairwise([*channels, image.channels])
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, code_BK: Tensor) -> Tensor:
        x_BCHW = self.first(code_BK).view(-1, *self.start).permute(0, 3, 1, 2)
        for layer in self.layers:
            x_BCHW = layer(F.relu(x_BCHW))
        return flat(x_BCHW[:, :, : self.image.height, : self.image.width])


def convolutions_of(tables: Sequence[tuple[Tensor, Tensor]]) -> int:
    """How many of an exported network's layers are convolutions; they come first."""
    return sum(weight.dim() == 4 for weight, _ in tables)


def forward_network(tables: Sequence[tuple[Tensor, Tensor]], image: ImageInput | None, x_BV: Rows) -> Tensor:
    """Logits `logit_BK` of an exported network, for images from their uint8 pixels; ReLU between all layers."""
    if image is None:
        return forward_exported(tables, x_BV)
    assert isinstance(x_BV, Tensor)
    x_BV = image.standardized(x_BV, tables[0][0].dtype)
    count = convolutions_of(tables)
    if count:
        x_BCHW = image.planes(x_BV)
        for weight, bias in tables[:count]:
            weight = weight.contiguous(memory_format=torch.channels_last)
            x_BCHW = F.relu(F.conv2d(x_BCHW, weight, bias, STRIDE, PADDING))
        x_BV = flat(x_BCHW)
    return forward_exported(tables[count:], x_BV)
