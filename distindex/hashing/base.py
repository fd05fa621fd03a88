"""What the methods have in common: the encoder, and for the autoencoders a decoder and a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from distindex.hashing import noise, objectives
from distindex.hashing.batch import Batch, SparseRows
from distindex.hashing.networks import Encoder, drop_inputs, glorot_linear, select_rows
from distindex.method_config import MethodConfig


class Method(nn.Module, ABC):
    """A network with a loss; its `encoder` is what becomes the hasher.

    Args:
        width: input features V.
        bits: code length K.
        classes: number of labels C; 0 without labels.
        multi: rows may have several labels.
        sparse: the input is term frequencies rather than vectors.
        config: the method's settings.

    Attributes:
        needs_labels: there is nothing to train without labels.
    """

    needs_labels = False

    def __init__(self, width: int, bits: int, classes: int, multi: bool, sparse: bool, config: MethodConfig) -> None:
        super().__init__()
        self.config, self.weights = config, config.weights()
        self.classes, self.multi, self.sparse = classes, multi, sparse
        self.encoder = Encoder(width, config.hidden, bits, self.weights.dropout)

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of one step; `total` is what is minimised, the others are for people to read.

        Each is scaled such that its average over the workers is its value over the global batch.
        """

    def sparse_parameters(self) -> list[Tensor]:
        """The tables `[V, U]` whose gradients are sparse."""
        return [self.encoder.first.table_VU] if self.sparse else []

    def after_step(self) -> None:
        """What follows the optimizer's step, the same on every worker."""

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden layer `hidden_BU`; in training some of the input and of each layer is dropped."""
        x_BV = batch.x_BV
        if self.training:
            x_BV = drop_inputs(x_BV, self.weights.input_dropout, noise.key_of(batch.key, 100), batch.row_B)
        return self.encoder.hidden(x_BV, batch.key, batch.row_B)


class Autoencoder(Method):
    """A method with a decoder of one layer, and a classifier where there are labels.

    The decoder of term frequencies is multinomial, that of vectors Gaussian; in reference mode it is a softmax
    for both, and several labels a row share one softmax. The multinomial may be that over the words of the
    global batch alone: the code then says which of them the row has, common words weigh less than rare ones,
    and a step costs what occurs.

    Args:
        class_inputs: width of the classifier's input; default: the last hidden layer.
    """

    def __init__(
        self,
        width: int,
        bits: int,
        classes: int,
        multi: bool,
        sparse: bool,
        config: MethodConfig,
        class_inputs: int | None = None,
    ) -> None:
        super().__init__(width, bits, classes, multi and not config.reference, sparse, config)
        self.decoder = glorot_linear(bits, width)
        self.classifier = glorot_linear(class_inputs or config.hidden[-1], classes) if classes else None

    def sparse_parameters(self) -> list[Tensor]:
        decoder = [self.decoder.weight] if self.config.vocabulary == "batch" and not self.config.reference else []
        return [*super().sparse_parameters(), *decoder] if self.sparse else []

    def reconstruction(self, code_BK: Tensor, batch: Batch) -> Tensor:
        """The mean reconstruction loss of the decoder's output for these codes."""
        if self.config.reference:
            loss_B = objectives.reference_reconstruction(self.decoder(code_BK), batch.target_BV)
        elif isinstance(batch.target_BV, SparseRows):
            loss_B = self.text_reconstruction(code_BK, batch.target_BV)
        else:
            loss_B = objectives.gaussian_reconstruction(self.decoder(code_BK), batch.target_BV)
        return objectives.mean_over_global_batch(loss_B, batch.global_rows)

    def text_reconstruction(self, code_BK: Tensor, target_BV: SparseRows) -> Tensor:
        """Rec_i of term frequencies, the softmax over the words of the global batch or over all."""
        weight_VK, bias_V = self.decoder.weight, self.decoder.bias
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
