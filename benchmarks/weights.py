"""Random weights in OpenAI's CLIP layout, with magnitudes that stay finite through every layer."""

import torch
from torch import Tensor, nn

from benchmarks.reference import ReferenceIntCLIP, Shape

RN101 = Shape()
TINY = Shape(
    layers=(1, 1, 2, 1), width=16, embed_dim=64, image_size=96, text_width=128, text_heads=2, text_layers=3
)  # fmt: skip


def random_state_dict(shape: Shape = RN101, seed: int = 0) -> dict[str, Tensor]:
    """A CLIP state dict in OpenAI's layout; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ReferenceIntCLIP(shape, torch.zeros(1, shape.context_length, dtype=torch.int64), contexts=1)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                # Small gains at the end of each block: 33 residual sums stay within the range of float16.
                low, high = (0.1, 0.4) if name.endswith("bn3") and "layer" in name else (0.8, 1.2)
                nn.init.uniform_(module.weight, low, high)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
    own = ("visual.semantic_", "visual.aggregation", "context_", "tokens")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(own)}
    return {**state, "logit_scale": torch.tensor(4.6052)}
