"""One training step of IntCLIP on RN101: the reference, ours without a cache, ours from the cache.

    python -m benchmarks.train_step --out docs/figures/train_step.json
    python -m benchmarks.train_step --batch 8 --clock cpu --threads 1      # on a machine with other work

All three have the same initial random weights and photos. Ours has the paper's split (layer4 is trained), the reference
the released one (layer3 and layer4). Two sentence lengths are measured: 11-15 words, the paper's best and our default,
and 6-9 words, as in the released code (7.1 on average); the reference takes equal time for both. If the processor has
bf16 instructions, ours from the cache is also measured under autocast, as with `train.precision: bf16`.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks.loader import write_photos
from benchmarks.machine import write_report
from benchmarks.reference import make_optimizer, train_step
from benchmarks.setup import our_method, parse, parser, resnets
from intclip.backbones.base import Features
from intclip.data.cache_shards import CacheFolder, Dtype
from intclip.data.feature_cache import FeatureCache, cache_key, open_or_build
from intclip.data.loading import pixel_batches
from intclip.data.sample import Sample
from intclip.machine import describe_machine
from intclip.methods.base import Method
from intclip.timing import paired
from intclip.training.frozen import FrozenFeatures

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Instruction sets with which bf16 is faster than fp32."""


def our_step(
    method: Method, features: Callable[[], Features], targets: Tensor, *, bf16: bool = False
) -> Callable[[], None]:
    """Return a step as in the training loop, without reading back."""
    groups = [{"params": group.parameters, "lr": 0.002 * group.lr_multiplier} for group in method.parameter_groups()]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = method.training_loss([features()], targets)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def loss_of(method: Method, features: Features, targets: Tensor) -> float:
    """Return the loss before any step."""
    with torch.no_grad():
        return float(sum(method.training_loss([features], targets).values()))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--released-split", action="store_true", help="train layer3 and layer4, as released")
    arguments = parse(options)
    reference, backbone = resnets("released" if arguments.released_split else "paper")
    everything = range(arguments.batch)
    rng = np.random.default_rng(0)
    targets = torch.from_numpy((rng.random((arguments.batch, 28)) < 0.07).astype(np.float32))
    optimizer = make_optimizer(reference)
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), arguments.batch, 500)
        samples = [Sample(str(i), np.zeros(28, np.float32), path) for i, path in enumerate(photos)]
        pixels = next(pixel_batches(samples, backbone.preprocess, arguments.batch)).pixels
        methods = {form: our_method(backbone, sentence_form=form).train() for form in ("11-15", "6-9")}
        method = methods["11-15"]
        frozen = FrozenFeatures(backbone, method.needs, device=torch.device("cpu"))
        caches: dict[Dtype, FeatureCache] = {
            dtype: open_or_build(
                CacheFolder(Path(folder, "cache")),
                samples,
                cache_key(backbone, method.needs, dtype=dtype),
                frozen.arrays,
            )
            for dtype in get_args(Dtype)
        }
        plain = loss_of(method, frozen(pixels), targets)
        difference = {
            dtype: abs(loss_of(method, cache.batch(everything), targets) / plain - 1) for dtype, cache in caches.items()
        }
        candidates: dict[str, Callable[[], object]] = {
            "reference": lambda: train_step(reference, optimizer, pixels, targets)
        }
        for form, each in methods.items():
            candidates[f"no cache, {form} words"] = our_step(each, lambda: frozen(pixels), targets)
            read = partial(caches["float16"].batch, everything)
            candidates[f"from the cache, {form} words"] = our_step(each, read, targets)
            if BF16 & set(describe_machine()["instructions"]):
                candidates[f"from the cache, {form} words, bf16"] = our_step(each, read, targets, bf16=True)
        result = paired(candidates, baseline="reference", repeats=arguments.repeats, clock=arguments.clock)
    report = {
        "what": "training step, IntCLIP on RN101, 28 classes, float32",
        "batch": arguments.batch,
        "our split": backbone.split,
        "relative difference of the loss from the cache": difference,
        **result,
    }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
