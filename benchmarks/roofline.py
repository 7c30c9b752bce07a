"""Roofline analysis: FLOPs and bytes of each part of a step, compared with this machine's measured peaks.

    python -m benchmarks.roofline --out docs/figures/roofline.json

FLOPs are counted by PyTorch's formulas for each operation. Bytes are a lower bound from forward hooks: every layer
reads its inputs and weights once and writes its outputs once; a backward pass moves twice as much. A part's roof is
min(peak FLOP/s, intensity × peak bytes/s), and its share is the achieved fraction of that roof.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import peaks, write_report
from benchmarks.reference import make_optimizer, train_step
from benchmarks.setup import our_method, parse, parser, resnets
from intclip.backbones import load_backbone
from intclip.backbones.base import Features
from intclip.backbones.clip_resnet import AttentionPool
from intclip.inference.graph import PhotoGraph
from intclip.labels import load_taxonomy
from intclip.methods.base import Method
from intclip.methods.prompts import PromptLearner
from intclip.methods.registry import build_method
from intclip.timing import paired


@contextmanager
def counted_bytes(*modules: nn.Module) -> Iterator[list[int]]:
    """Count, within this context, a lower bound of the bytes moved by the layers of some modules; one number."""
    total = [0]

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [*inputs, output, *module.parameters(recurse=False), *module.buffers(recurse=False)]
        total[0] += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    leaves = {leaf for module in modules for leaf in module.modules() if not list(leaf.children())}
    handles = [leaf.register_forward_hook(add) for leaf in leaves]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def work_of(function: Callable[[], object], modules: list[nn.Module], *, backward: bool) -> dict[str, float]:
    """Return GFLOP and GB of one run of a part."""
    with counted_bytes(*modules) as moved, FlopCounterMode(display=False) as counter:
        function()
    return {"GFLOP": counter.get_total_flops() / 1e9, "GB": moved[0] * (3 if backward else 1) / 1e9}


def gflop(function: Callable[[], object]) -> float:
    """Return the GFLOP of one run."""
    with FlopCounterMode(display=False) as counter:
        function()
    flop: int = counter.get_total_flops()
    return round(flop / 1e9, 2)


def count_whole(batch: int) -> dict[str, dict[str, float]]:
    """Return GFLOP of whole steps and calls: the upper limits of ratios on a compute-bound machine."""
    reference, backbone = resnets()
    method = our_method(backbone).train()
    pixels, targets = torch.randn(batch, 3, 224, 224), torch.zeros(batch, 28)
    features = backbone.features(pixels, method.needs)
    optimizer = make_optimizer(reference)

    def step(method: Method, features: Features) -> None:
        torch.autograd.backward(torch.stack(list(method.training_loss([features], targets).values())).sum())

    training = {
        "reference": gflop(lambda: train_step(reference, optimizer, pixels, targets)),
        "frozen features": gflop(lambda: backbone.features(pixels, method.needs)),
        "ours, from the cache": gflop(lambda: step(method, features)),
        "ours, from the cache, 6-9 words": gflop(
            lambda: step(our_method(backbone, sentence_form="6-9").train(), features)
        ),
    }
    graph = PhotoGraph(method.eval(), exclusive=False, maps=False)
    lite = load_backbone("lite")
    noise = torch.randn(batch, 3, lite.image_size, lite.image_size)
    zero_shot = build_method("zero_shot", lite, load_taxonomy("intentonomy"), {}).eval()
    with torch.no_grad():
        graph(pixels[:2])  # text features are cached from here on
        zero_shot_graph = PhotoGraph(zero_shot, exclusive=False, maps=False)
        zero_shot_graph(noise[:2])
        inference = {
            "reference": gflop(lambda: reference(pixels)),
            "ours": gflop(lambda: graph(pixels)),
            "encode_image": gflop(lambda: backbone.encode_image(pixels)),
            "lite, zero-shot": gflop(lambda: zero_shot_graph(noise)),
        }
    return {"GFLOP of a training step": training, "GFLOP of inference": inference}


def main() -> None:
    arguments = parse(parser(__doc__))
    _, backbone = resnets()
    method = our_method(backbone).train()
    head, semantic, aggregation = backbone.head, method.semantic, method.aggregation
    assert isinstance(head, AttentionPool)
    prompts = method.prompts
    assert isinstance(prompts, PromptLearner)
    assert semantic is not None
    assert aggregation is not None
    pixels = torch.randn(arguments.batch, 3, 224, 224)
    features = backbone.features(pixels, method.needs)
    deep = semantic(features["trunk"]).detach()
    text = prompts.encode(backbone.text).detach()

    def without_gradient(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(function)

    def with_gradient(function: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(function().sum())

    leaf = deep.clone().requires_grad_()
    regions = head.regions(deep).requires_grad_()
    parts: dict[str, tuple[Callable[[], object], list[nn.Module], bool]] = {
        "trunk, forward": (without_gradient(lambda: backbone.trunk(pixels)), [backbone.trunk], False),
        "frozen layer4, forward": (without_gradient(lambda: backbone.deep(features["trunk"])), [backbone.deep], False),
        "trained layer4, forward + backward": (
            with_gradient(lambda: semantic(features["trunk"])),
            [semantic],
            True,
        ),
        "regions, forward + backward": (
            with_gradient(lambda: head.regions(leaf)),
            [head.v_proj, head.c_proj],
            True,
        ),
        "text, forward + backward": (
            with_gradient(lambda: prompts.encode(backbone.text)),
            [backbone.text],
            True,
        ),
        "aggregation and pooling, forward + backward": (
            with_gradient(lambda: method.pooling(aggregation(regions, features["regions"]), text)),
            [aggregation],
            True,
        ),
    }
    peak = peaks()
    timed = paired(
        {name: function for name, (function, _, _) in parts.items()},
        baseline="trunk, forward",
        repeats=arguments.repeats,
        clock=arguments.clock,
    )["seconds"]
    rows = {}
    for name, (function, modules, backward) in parts.items():
        work, seconds = work_of(function, modules, backward=backward), timed[name]
        intensity = work["GFLOP"] / work["GB"]
        roof = min(peak["gemm_GFLOPs"], intensity * peak["copy_GBs"])
        rows[name] = {
            "seconds": seconds,
            "GFLOP": round(work["GFLOP"], 1),
            "GB": round(work["GB"], 3),
            "FLOP per byte": round(intensity, 1),
            "GFLOP/s": round(work["GFLOP"] / seconds, 1),
            "bound by": "compute" if roof == peak["gemm_GFLOPs"] else "memory",
            "share of the roof": round(work["GFLOP"] / seconds / roof, 2),
        }
    ridge = peak["gemm_GFLOPs"] / peak["copy_GBs"]
    report = {
        "batch": arguments.batch,
        "peaks": {**peak, "ridge FLOP per byte": round(ridge, 1)},
        "parts": rows,
        **count_whole(arguments.batch),
    }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
