"""Cost of bf16 and int8: mAP and speed of the embedded proxy model (lite), compared with float32.

    INTCLIP_DATA=/data python -m benchmarks.precision --out docs/figures/precision.json

`$INTCLIP_DATA/flickr8k` is the proxy dataset; its validation split is scored, its training split calibrates int8.
bf16 is measured if the processor supports it.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

import intclip
from benchmarks.machine import openvino_has_bf16, write_report
from benchmarks.setup import parse, parser
from intclip.data.registry import load_dataset
from intclip.inference.speed import noise_pixels
from intclip.metrics import multilabel_report
from intclip.timing import paired


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--calibrate", type=int, default=300, help="training photos that calibrate")
    options.add_argument("--limit", type=int, help="score only so many photos, for a quick try")
    arguments = parse(options)
    dataset = load_dataset("proxy-intents", Path(os.environ.get("INTCLIP_DATA", "."), "flickr8k"))
    # Evenly over the split, whose order is not random.
    every = max(1, len(dataset.splits["train"]) // arguments.calibrate)
    candidates = (sample.image for sample in dataset.splits["train"][::every])
    calibrating = [image for image in candidates if image is not None][: arguments.calibrate]
    scored = dataset.splits["val"][: arguments.limit]
    targets = np.stack([sample.targets for sample in scored])
    exact = intclip.load("proxy", engine="openvino", threads=arguments.threads)
    models = {"float32": exact, "int8": exact.quantize(calibrating, limit=arguments.calibrate)}
    if openvino_has_bf16():
        models["bf16"] = intclip.load("proxy", engine="openvino", precision="bf16", threads=arguments.threads)
    scores = {
        name: np.stack([prediction.probabilities for prediction in model.predict([sample.image for sample in scored])])
        for name, model in models.items()
    }
    share = dataset.positive_share
    maps = {name: multilabel_report(values, targets, positive_share=share)["mAP"] for name, values in scores.items()}
    pixels = noise_pixels(arguments.batch, exact.card.preprocessing.size)
    report = {
        "model": "proxy (lite)",
        "photos": len(scored),
        "calibrated on": len(calibrating),
        "mAP": {name: round(100 * value, 2) for name, value in maps.items()},
        "mAP lost": {name: round(100 * (maps["float32"] - value), 2) for name, value in maps.items()},
        "largest change of a probability": {
            name: round(float(np.abs(scores["float32"] - values).max()), 4) for name, values in scores.items()
        },
        "batch": arguments.batch,
        **paired(
            {name: partial(model.predict_pixels, pixels) for name, model in models.items()},
            baseline="float32",
            repeats=4 * arguments.repeats,
            clock=arguments.clock,
        ),
    }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
