"""Two small Transformers built from torch's layers: pre-norm, GELU, without dropout."""

import torch
from torch import Tensor, nn


class _Encoder(nn.Module):
    """Positions and layers over (batch, tokens, width)."""

    def __init__(self, tokens: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        # TransformerEncoder copies one layer, so all start with equal weights
        for p in self.layers.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Return the states, (batch, tokens, width); causal: a token does not attend to later ones."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype) if causal else None
        states: Tensor = self.layers(x + self.positions[: x.shape[1]], mask=mask, is_causal=causal)
        return states


class ByteTransformer(nn.Module):
    """A language model on bytes, like GPT-2 at 1/1000 the size: (batch, tokens) int64 -> (batch, tokens, 256) logits.

    Args:
        tokens: the longest context.
        width: size of a token's state.
        layers: number of layers.
        heads: number of attention heads, a divisor of width.
    """

    def __init__(self, tokens: int = 64, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.encoder = _Encoder(tokens, width, layers, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each next byte; the output layer is the embedding (Press & Wolf 2017)."""
        states: Tensor = self.encoder(self.embedding(x), causal=True)
        return states @ self.embedding.weight.T


class VisionTransformer(nn.Module):
    """A vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) on 8 × 8 pixels in 16 patches.

    (batch, 64) -> (batch, classes) logits, from the mean of the patches' states.

    Args:
        width: size of a patch's state.
        layers: number of layers.
        heads: number of attention heads, a divisor of width.
        classes: number of outputs.
    """

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.encoder = _Encoder(16, width, layers, heads)
        self.output = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        patches = self.patches(x.unflatten(1, (1, 8, 8))).flatten(2).transpose(1, 2)
        logits: Tensor = self.output(self.encoder(patches).mean(1))
        return logits
