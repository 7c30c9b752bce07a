"""Label embeddings from coarser levels: one transformer layer per level, from the coarsest to the classes.

    F_H = E_H                                            embeddings of the coarsest names by the frozen text tower
    F_h = Layer_h(E_h, F_{h+1})                          every level attends to itself and the level above
    t'  = t / |t| + g · F_0                              added to the class's text feature; initially g = 0

Our interpretation of "Multi-layer" (IntCLIP paper, Table 3). The paper only states that it is a multi-layer
transformer "inspired by HLEG" (Shi et al., 2023) instead of HCI: the sentences are then only the class names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.errors import TaxonomyError
from intclip.labels.taxonomy import Taxonomy


class LabelTransformer(nn.Module):
    """Adds the levels to the text features of the classes.

    Args:
        text: Text tower, which embeds the names of all levels once.
        taxonomy: Has at least two levels.

    Raises:
        TaxonomyError: The taxonomy has one level.
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
                # Not stored: derived from the taxonomy, which is in the bundle.
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
        """Return unit text features (halves, K, D) plus the levels' residual on both halves."""
        above = self.get_buffer(f"level{len(self.layers)}")[None]
        for level in reversed(range(len(self.layers))):
            above = self.layers[level](self.get_buffer(f"level{level}")[None], above)
        return F.normalize(features, dim=2) + self.gate * F.normalize(above, dim=2)
