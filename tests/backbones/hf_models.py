"""Models of `transformers` with random weights that reveal a wrong bias or norm."""

import torch


def randomised(model, seed=0):
    """Randomise weights: with the default initialisation, wrong biases would go undetected."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                spread = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.empty(parameter.shape).normal_(0, spread, generator=generator))
            else:
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    return model.eval()
