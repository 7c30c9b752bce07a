"""Training steps of the recipe `proxy-lite`: a plain PyTorch loop, and ours from the cache.

    python -m benchmarks.plain_loop --clock cpu --out docs/figures/plain_loop.json

All train the same model with the same optimiser and photos. The plain loop decodes each photo, runs the whole image
tower, without gradients for its frozen parts, and has Conv2d and BatchNorm2d layers in the trained part. Its trunk,
text tower and loss are ours, which makes it faster than a loop from scratch. The recipe updates the prompts at one step
of eight; a further plain loop does at every step. "filling the cache" is computed once for each photo and view.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.lite_deep import plain
from benchmarks.loader import write_photos
from benchmarks.machine import write_report
from benchmarks.setup import parse, parser
from intclip.backbones import load_backbone
from intclip.backbones.base import Features
from intclip.data.cache_shards import CacheFolder
from intclip.data.feature_cache import FeatureCache, cache_key, open_or_build
from intclip.data.sample import Sample
from intclip.labels import load_taxonomy
from intclip.methods.base import Method
from intclip.methods.registry import build_method
from intclip.timing import paired
from intclip.training.frozen import FrozenFeatures
from intclip.training.optimizer import build_optimizer
from intclip.training.recipe import load_recipe

STEPS = 8
"""Steps of a round, of which the recipe updates the prompts at one."""
RECIPE = load_recipe("proxy-lite")
SIZE = RECIPE.train.batch_size


def build(*, simple: bool, **changes: object) -> Method:
    """Build the recipe's method with these options changed, `simple` with PyTorch's own layers in the trained part."""
    backbone = load_backbone("lite")
    if simple:
        assert isinstance(backbone.deep, nn.Sequential)
        backbone.deep = nn.Sequential(*(plain(layer) for layer in backbone.deep)).requires_grad_(False).eval()
    options = {**RECIPE.method.options, **changes}
    torch.manual_seed(0)
    return build_method(RECIPE.method.name, backbone, load_taxonomy("proxy-intents"), options).train()


def loop(method: Method, features: Callable[[list[int]], Features], targets: Tensor) -> Callable[[], list[float]]:
    """Return a function that takes `STEPS` steps and returns their losses."""
    optimizer = build_optimizer(RECIPE.optim, method.parameter_groups())

    def step(number: int) -> float:
        method.before_step(number)
        rows = list(range(number * SIZE, (number + 1) * SIZE))
        loss = torch.stack(list(method.training_loss([features(rows)], targets[rows]).values())).sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(method.learnable_parameters(), RECIPE.optim.clip_norm or torch.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
        return float(loss.detach())

    return lambda: [step(number) for number in range(STEPS)]


def main() -> None:
    """Measure and report."""
    arguments = parse(parser(__doc__))
    ours, same = build(simple=False), build(simple=True)
    everywhere = build(simple=True, prompts_every=1)
    rng = np.random.default_rng(0)
    labels = (rng.random((STEPS * SIZE, len(ours.taxonomy))) < 0.1).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), len(labels), 500)
        samples = [Sample(str(row), labels[row], photo) for row, photo in enumerate(photos)]
        frozen = FrozenFeatures(ours.backbone, ours.needs, device=torch.device("cpu"))
        key = cache_key(ours.backbone, ours.needs, dtype=RECIPE.cache.dtype)

        def fill(name: str) -> FeatureCache:
            return open_or_build(CacheFolder(Path(folder, name)), samples, key, frozen.arrays)

        def read(method: Method, rows: list[int]) -> Features:
            pixels = [ours.backbone.preprocess(Image.open(photos[row]).convert("RGB")) for row in rows]
            return method.backbone.features(torch.stack(pixels), method.needs)

        targets = torch.from_numpy(labels)
        loops = {
            "plain, prompts at every step": loop(everywhere, partial(read, everywhere), targets),
            "plain": loop(same, partial(read, same), targets),
            "from the cache": loop(ours, fill("cache").batch, targets),
        }
        first = [take()[0] for take in loops.values()]
        empty = iter(range(1 + arguments.repeats))
        result = paired(
            {**loops, "filling the cache": lambda: fill(f"cache {next(empty)}")},
            baseline="plain",
            repeats=arguments.repeats,
            clock=arguments.clock,
        )
    write_report(
        arguments.out,
        {
            "what": f"{STEPS} training steps of proxy-lite, {SIZE} photos each; filling the cache with as many photos",
            "relative difference of the first losses": max(first) / min(first) - 1,
            **result,
        },
    )


if __name__ == "__main__":
    main()
