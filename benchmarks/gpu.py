"""Speed on a GPU. Without a GPU, it describes the measurements and exits.

    python -m benchmarks.gpu --out docs/figures/gpu.json
    python -m benchmarks.gpu --rehearse                     # tiny models on the CPU, to check the script

For RN101 and ViT-L/14 with random weights, in float32 and bfloat16:
  inference   photos/s of IntCLIP and of plain CLIP's encode_image
  training    milliseconds per step of the training loop, from JPEG files and from the feature cache, the FLOPs of
              a step, and their share of the GPU's measured matrix-product peak; for RN101 also the reference's step
  waiting     whether any step makes the host wait for the GPU: PyTorch's synchronisation check raises on
              every such call, and the profiler counts those of the driver
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loader import write_photos
from benchmarks.machine import write_report
from benchmarks.reference import ReferenceIntCLIP, make_optimizer, train_step
from benchmarks.weights import RN101, random_state_dict
from intclip.backbones.architecture import ARCHITECTURES, Architecture
from intclip.backbones.base import Backbone
from intclip.backbones.clip import random_clip
from intclip.data.sample import Dataset, Sample
from intclip.inference.graph import PhotoGraph
from intclip.labels import load_taxonomy
from intclip.methods.base import Method
from intclip.training.distributed import Processes
from intclip.training.experiment import build_experiment, open_inputs
from intclip.training.loop import Trainer, prepare_method
from intclip.training.recipe import Recipe, load_recipe

WARM_UP = 5
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Plan:
    """The measurements: device, models, batches and steps."""

    device: torch.device
    models: dict[str, Architecture]
    batch: int
    steps: int


def full_plan(batch: int) -> Plan:
    """Return the real measurement."""
    return Plan(torch.device("cuda"), {name: ARCHITECTURES[name] for name in ("RN101", "ViT-L/14")}, batch, 30)


def rehearsal() -> Plan:
    """Return a measurement with tiny models on the CPU."""
    towers = {
        "RN101": replace(ARCHITECTURES["RN101"], vision_layers=(1, 1, 1, 1), vision_width=16),
        "ViT-L/14": replace(
            ARCHITECTURES["ViT-L/14"], vision_layers=4, vision_width=64, patch_size=16, vision_heads=None
        ),
    }
    models = {
        name: replace(tower, embed_dim=64, image_size=64, text_width=64, text_layers=2)
        for name, tower in towers.items()
    }
    return Plan(torch.device("cpu"), models, 4, 3)


class TimedTrainer(Trainer):
    """The training loop without scoring and files; times its steps, or checks them for waiting."""

    watch = False
    seconds = 0.0

    def _step(self, *arguments: Any) -> None:
        device, step = self.processes.device, self.position.step
        if step == min(WARM_UP, self.steps - 1):
            wait(device)
            self._begin = time.perf_counter()
        with raising_on_waits(self.watch and step > 0):
            super()._step(*arguments)
        if step == self.steps - 1:
            wait(device)
            self.seconds = (time.perf_counter() - self._begin) / (self.steps - min(WARM_UP, self.steps - 1))

    def _validate(self) -> dict[str, Any]:
        return {}

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        pass


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def raising_on_waits(active: bool) -> Iterator[None]:
    """Raise, within this context, on every call that makes the host wait for the GPU."""
    if not (active and torch.cuda.is_available()):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def rate(function: Callable[[], object], photos: int, device: torch.device, seconds: float = 3.0) -> float:
    """Return photos per second of calls queued on the device."""
    for _ in range(3):
        function()
    wait(device)
    calls, start = 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - start < seconds:
        function()
        wait(device)
        calls += 1
    return round(calls * photos / (time.perf_counter() - start), 1)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return TFLOP/s of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = rate(lambda: left @ right, 1, device)
    return products * 2 * size**3 / 1e12


def make_dataset(plan: Plan, folder: Path) -> Dataset:
    """Make a dataset of a few repeated photos with random labels, enough for the steps."""
    photos = write_photos(folder, 64, 500)
    rng = np.random.default_rng(0)
    samples = [
        Sample(str(number), (rng.random(28) < 0.07).astype(np.float32), photos[number % len(photos)])
        for number in range(plan.batch * plan.steps)
    ]
    return Dataset("made", load_taxonomy("intentonomy"), "multilabel", {"train": samples, "val": samples[: plan.batch]})


def make_trainer(
    plan: Plan, backbone: Backbone, dataset: Dataset, folder: Path, *, cache: str, precision: str
) -> TimedTrainer:
    """Make the loop for one epoch, from the cache or from files."""
    recipe: Recipe = load_recipe(
        "paper",
        [
            "data.test=null", "data.positive_share=null", "backbone.engine=torch", f"train.device={plan.device.type}",
            f"train.batch_size={plan.batch}", f"train.precision={precision}", f"cache.path={cache}",
            "schedule.epochs=1", "schedule.warmup_epochs=0", "train.log_every=100000",
        ],
    )  # fmt: skip
    processes = Processes(0, 1, plan.device)
    experiment = build_experiment(recipe, processes, *open_inputs(recipe, dataset=dataset, backbone=backbone))
    prepare_method(recipe, experiment, processes)
    return TimedTrainer(recipe, experiment, processes, folder, progress=False)


def measure_inference(plan: Plan, method: Method) -> dict[str, Any]:
    """Measure photos/s of IntCLIP and of encode_image."""
    backbone, device = method.backbone, plan.device
    pixels = torch.randn(plan.batch, 3, backbone.image_size, backbone.image_size, device=device)
    graph = PhotoGraph(method, exclusive=False, maps=False)
    report = {}
    for precision in ("fp32", "bf16"):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            report[precision] = {
                "IntCLIP photos/s": rate(lambda: graph(pixels), plan.batch, device),
                "encode_image photos/s": rate(lambda: backbone.encode_image(pixels), plan.batch, device),
            }
    return report


def count_flops(method: Method, plan: Plan) -> tuple[float, float]:
    """Count the TFLOP of a step from the cache, and of its frozen features."""
    size = method.backbone.image_size
    pixels = torch.randn(plan.batch, 3, size, size, device=plan.device)
    targets = torch.zeros(plan.batch, 28, device=plan.device)
    method.train()
    with FlopCounterMode(display=False) as frozen:
        features = method.backbone.features(pixels, method.needs)
    with FlopCounterMode(display=False) as step:
        torch.autograd.backward(torch.stack(list(method.training_loss([features], targets).values())).sum())
    method.zero_grad()
    return step.get_total_flops() / 1e12, frozen.get_total_flops() / 1e12


def measure_training(plan: Plan, backbone: Backbone, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Measure the loop from files and from the cache, in both precisions."""
    report: dict[str, Any] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        peak_tflops = peak(plan.device, dtype)
        report[precision] = {"peak TFLOP/s": round(peak_tflops, 1)}
        for source, cache in (("from files", "off"), ("from the cache", str(folder / f"cache-{precision}"))):
            options = {"cache": cache, "precision": precision}
            trainer = make_trainer(plan, backbone, dataset, folder, **options)
            cached, frozen = count_flops(trainer.method, plan)
            trainer.run(resume=False)
            work = cached + (frozen if cache == "off" else 0)
            report[precision][source] = {
                "ms a step": round(1000 * trainer.seconds, 2),
                "photos/s": round(plan.batch / trainer.seconds, 1),
                "TFLOP a step": round(work, 3),
                "share of the peak": round(work / trainer.seconds / peak_tflops, 3),
                **watch(make_trainer(plan, backbone, dataset, folder, **options)),
            }
    return report


def watch(trainer: TimedTrainer) -> dict[str, Any]:
    """Check whether the host waits for the device within steps, by PyTorch's check and by the profiler."""
    if trainer.processes.device.type != "cuda":
        trainer.run(resume=False)
        return {"host waits": "not told without a GPU"}
    trainer.watch = True
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            trainer.run(resume=False)
    except RuntimeError as error:
        return {"host waits": str(error).splitlines()[0]}
    counts = {event.key: event.count for event in trace.key_averages() if event.key in _WAITS}
    return {"host waits": "never within a step", "driver calls in the whole run": counts}


def measure_reference(plan: Plan) -> dict[str, Any]:
    """Measure the released step, in float32 and, as released, in float16 without gradient scaling."""
    tokens = torch.zeros(28, RN101.context_length, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1:30], tokens[:, 30] = 49406, 300, 49407
    reference = ReferenceIntCLIP(RN101, tokens)
    reference.load_openai(random_state_dict(RN101))
    reference.to(plan.device)
    optimizer = make_optimizer(reference)
    pixels = torch.randn(plan.batch, 3, 224, 224, device=plan.device)
    targets = torch.zeros(plan.batch, 28, device=plan.device)
    report = {}
    for precision in ("fp32", "fp16"):
        with torch.autocast(plan.device.type, torch.float16, enabled=precision == "fp16"):
            photos = rate(lambda: train_step(reference, optimizer, pixels, targets), plan.batch, plan.device)
        report[precision] = {"ms a step": round(1000 * plan.batch / photos, 2), "photos/s": photos}
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    options.add_argument("--batch", type=int, default=32, help="photos a batch")
    options.add_argument("--rehearse", action="store_true", help="tiny models on the CPU")
    arguments = options.parse_args()
    if not (torch.cuda.is_available() or arguments.rehearse):
        print(f"No GPU here: nothing is measured.\n\n{__doc__}")
        return
    plan = rehearsal() if arguments.rehearse else full_plan(arguments.batch)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any] = {"batch": plan.batch, "rehearsal": arguments.rehearse}
    for name, architecture in plan.models.items():
        with tempfile.TemporaryDirectory() as folder:
            backbone = random_clip(architecture, name=name)
            dataset = make_dataset(plan, Path(folder))
            training = measure_training(plan, backbone, dataset, Path(folder))
            method = make_trainer(plan, backbone, dataset, Path(folder), cache="off", precision="fp32").method
            report[name] = {"inference": measure_inference(plan, method.eval()), "training": training}
        if name == "RN101" and not arguments.rehearse:
            report[name]["reference training"] = measure_reference(plan)
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
