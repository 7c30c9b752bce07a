"""Label embeddings that learn from the coarser levels: one transformer layer a level, from the coarsest to the classes.

    F_H = E_H                                            the coarsest names, embedded by the frozen text tower
    F_h = Layer_h(E_h, F_{h+1})                          every level attends to itself and to the level above it
    t'  = t / |t| + g · F_0                              beside the class's own text feature; g starts at 0

This is our reading of "Multi-layer" (IntCLIP paper, Table 3), of which the paper says only that it is a multi-layer
transformer "inspired by HLEG" (Shi et al., 2023) instead of HCI: the sentences are then the class names alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.errors import TaxonomyError
from intclip.labels.taxonomy import Taxonomy


class LabelTransformer(nn.Module):
    """What the levels add to the text features of the classes.

    Args:
        text: The text tower, which embeds the names of all levels once.
        taxonomy: Two levels or more.

    Raises:
        TaxonomyError: It has one level.
    """

    def __init__(self, text: TextTower, taxonomy: Taxonomy) -> None:
        super().__init__()
        if len(taxonomy.levels) < 2:
            raise TaxonomyError(
                f"taxonomy {taxonomy.name} has only one level, and a transformer over levels needs several; give its "
                "classes "
                "parents, or set label_transformer to false"
            )
        with torch.no_grad():
            for level, names in enumerate(taxonomy.levels.values()):
                tokens = text.tokenize(list(names)).to(next(text.parameters()).device)
                # Not stored: derived from the taxonomy, which the bundle has.
                self.register_buffer(f"level{level}", F.normalize(text(tokens), dim=1), persistent=False)
        heads = next(count for count in (8, 4, 2, 1) if text.embed_dim % count == 0)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                text.embed_dim, heads, 4 * text.embed_dim, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(len(taxonomy.levels) - 1)
        )
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Text features (halves, K, D) at length 1, with what the levels add to both halves."""
        above = self.get_buffer(f"level{len(self.layers)}")[None]
        for level in reversed(range(len(self.layers))):
            above = self.layers[level](self.get_buffer(f"level{level}")[None], above)
        return F.normalize(features, dim=2) + self.gate * F.normalize(above, dim=2)
