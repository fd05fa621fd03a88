"""What the methods have in common: the encoder, and for the autoencoders a decoder and a classifier."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import cast

from torch import Tensor, nn

from distindex.hashing import noise, objectives
from distindex.hashing.augmentation import augment, drop_pixels
from distindex.hashing.batch import Batch, Rows, SparseRows
from distindex.hashing.convolution import ImageDecoder, ImageEncoder, ImageInput
from distindex.hashing.networks import Encoder, drop_inputs, glorot_linear, select_rows
from distindex.method_config import MethodConfig


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a network is built for.

    Attributes:
        width: input features V.
        bits: code length K.
        classes: number of labels C; 0 without labels.
        multi: rows may have several labels.
        sparse: the input is the words of texts rather than vectors.
        image: shape and scale of the input where it is images.
        labeled: share of the rows of a batch that have labels.
        target_width: numbers that a decoder reconstructs.
    """

    width: int
    bits: int
    classes: int
    multi: bool
    sparse: bool
    image: ImageInput | None
    labeled: float
    target_width: int


class Method(nn.Module, ABC):
    """A network with a loss; its `encoder` is what becomes the hasher.

    Args:
        problem: what it is built for.
        config: the method's settings.

    Attributes:
        needs_labels: there is nothing to train without labels.
        reads_pairs: the loss reads answered pairs.
    """

    needs_labels = False
    reads_pairs = False

    def __init__(self, problem: Problem, config: MethodConfig) -> None:
        super().__init__()
        width, bits, image = problem.width, problem.bits, problem.image
        self.config, self.weights = config, config.weights(images=image is not None)
        self.classes, self.multi, self.sparse = problem.classes, problem.multi, problem.sparse
        self.image = image
        self.encoder: Encoder
        if image is None:
            # The reference code's Adam moves every word in every step.
            sparse_gradient = not config.reference
            self.encoder = Encoder(width, config.hidden, bits, self.weights.dropout, sparse_gradient)
        else:
            self.encoder = ImageEncoder(image, config.convolutions, config.hidden, bits, self.weights.dropout)

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of one step; `total` is what is minimised, the others are for people to read.

        Each is scaled such that its average over the workers is its value over the global batch.
        """

    def sparse_parameters(self) -> list[Tensor]:
        """The tables `[V, U]` whose gradients are sparse."""
        return [self.encoder.first.table_VU] if self.sparse and not self.config.reference else []

    def after_step(self) -> None:
        """What follows the optimizer's step, the same on every worker."""

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden layer `hidden_BU`; in training some of the input and of each layer is dropped."""
        return self.encoder.hidden(self.seen(batch, batch.key), batch.key, batch.row_B)

    def seen(self, batch: Batch, key: int) -> Rows:
        """The encoder's input; in training some of it is dropped, and images are mirrored and moved."""
        x_BV, image, dropped = batch.x_BV, self.image, self.weights.input_dropout if self.training else 0.0
        if image is None:
            return drop_inputs(x_BV, dropped, noise.key_of(key, 100), batch.row_B)
        assert not isinstance(x_BV, SparseRows)
        if self.training:
            x_BHWC = x_BV.view(-1, image.height, image.width, image.channels)
            x_BHWC = augment(x_BHWC, self.config.flip, self.config.shift, noise.key_of(key, 101), batch.row_B)
            x_BV = x_BHWC.reshape(len(x_BV), -1)
        x_BV = image.standardized(x_BV, next(self.encoder.parameters()).dtype)
        return drop_pixels(x_BV, image.channels, dropped, noise.key_of(key, 100), batch.row_B)


class Autoencoder(Method):
    """A method with a decoder, and a classifier where there are labels.

    The decoder is one layer, for images a deconvolution. `config.likelihood` compares its output with the input;
    in reference mode that is a softmax for texts and vectors, and several labels a row share one softmax.
    The multinomial may be that over the words of the global batch alone: the code then says which of them the row
    has, common words weigh less than rare ones, and a step costs what occurs.

    Args:
        class_inputs: width of the classifier's input; default: the last hidden layer.
    """

    def __init__(self, problem: Problem, config: MethodConfig, class_inputs: int | None = None) -> None:
        super().__init__(dataclasses.replace(problem, multi=problem.multi and not config.reference), config)
        bits, classes, image = problem.bits, problem.classes, problem.image
        self.decoder = glorot_linear(bits, problem.target_width) if image is None else ImageDecoder(bits, image)
        self.likelihood = config.likelihood
        if config.likelihood == "auto":
            self.likelihood = "multinomial" if problem.sparse else "gaussian" if image is None else "bernoulli"
        self.classifier = glorot_linear(class_inputs or config.hidden[-1], classes) if classes else None

    def sparse_parameters(self) -> list[Tensor]:
        tables = super().sparse_parameters()
        if self.sparse and self.config.vocabulary == "batch" and not self.config.reference:
            tables.append(cast(nn.Linear, self.decoder).weight)
        return tables

    def reconstruction(self, code_BK: Tensor, batch: Batch) -> Tensor:
        """The mean reconstruction loss of the decoder's output for these codes."""
        target_BV = batch.target_BV
        if isinstance(target_BV, SparseRows):
            if self.config.reference:
                loss_B = objectives.reference_reconstruction(self.decoder(code_BK), target_BV)
            else:
                loss_B = self.text_reconstruction(code_BK, target_BV)
            return objectives.mean_over_global_batch(loss_B, batch.global_rows)
        decoded_BV = self.decoder(code_BK)
        if self.config.reference:
            loss_B = objectives.reference_reconstruction(decoded_BV, target_BV)
        elif self.likelihood == "gaussian":
            if self.image is not None:
                target_BV = self.image.standardized(target_BV, decoded_BV.dtype)
            loss_B = objectives.gaussian_reconstruction(decoded_BV, target_BV)
        else:
            if self.image is not None:
                target_BV = target_BV.to(decoded_BV.dtype) / 255
            loss_B = objectives.bernoulli_reconstruction(decoded_BV, target_BV)
        return objectives.mean_over_global_batch(loss_B, batch.global_rows)

    def text_reconstruction(self, code_BK: Tensor, target_BV: SparseRows) -> Tensor:
        """Rec_i of term frequencies, the softmax over the words of the global batch or over all."""
        decoder = cast(nn.Linear, self.decoder)
        weight_VK, bias_V = decoder.weight, decoder.bias
        if self.config.vocabulary == "batch":
            word_A, target_BV = target_BV.occurring()
            weight_VK, bias_V = select_rows(weight_VK, word_A), bias_V[word_A]
        return objectives.multinomial_reconstruction(code_BK, weight_VK, bias_V, target_BV)

    def class_loss(self, class_logit_BC: Tensor, batch: Batch) -> Tensor:
        """The classifier's loss, summed over the labeled rows and divided by all rows."""
        if self.config.reference:
            loss_B = objectives.reference_class_cross_entropy(class_logit_BC, batch.label_BC)
        else:
            loss_B = objectives.class_cross_entropy(class_logit_BC, batch.label_BC, self.multi)
        return objectives.mean_over_global_batch(loss_B, batch.global_rows)

    def scaled(self, total: Tensor) -> Tensor:
        """Divided by the largest weight, so that float32 is at ease; Adam's steps do not depend on it.

        The reference code does not divide.
        """
        if self.config.reference or not self.classes:
            return total
        return total / max(1.0, self.weights.class_weight, self.weights.pair_weight)
