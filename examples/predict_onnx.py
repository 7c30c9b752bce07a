"""Predict intents from an exported ONNX file without intclip, using only onnxruntime, Pillow and numpy.

intclip export lite --out lite.onnx
python examples/predict_onnx.py lite.onnx photo.jpg …
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BATCH = 16


def read(path: str, size: int, mean: list[float], std: list[float], interpolation: str, crop: str) -> np.ndarray:
    """Return a photo as model input (3, S, S): upright, resized (short side S), centre-cropped and normalised."""
    image = Image.open(path)
    image.draft(None, (2 * size, 2 * size))
    image = ImageOps.exif_transpose(image).convert("RGB")
    box = [0.0, 0.0, *map(float, image.size)]
    if crop == "center":
        for axis, side in enumerate(image.size):
            resized = int(size * side / min(image.size))
            start = round((resized - size) / 2)
            box[axis], box[axis + 2] = start * side / resized, min((start + size) * side / resized, float(side))
    image = image.resize((size, size), getattr(Image.Resampling, interpolation.upper()), box=tuple(box))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)
    return (pixels - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["intclip"])
    names, thresholds = np.array(card["labels"]), np.float32(card["thresholds"])
    for start in range(2, len(sys.argv), BATCH):
        paths = sys.argv[start : start + BATCH]
        pixels = np.stack([read(path, **card["preprocessing"]) for path in paths])
        for path, row in zip(paths, session.run(["probabilities"], {"pixels": pixels})[0], strict=True):
            holds = [row.argmax()] if card["task"] == "singlelabel" else row >= thresholds
            found = {"labels": names[holds].tolist(), "scores": dict(zip(card["labels"], row.tolist(), strict=True))}
            print(json.dumps({"source": path} | found, ensure_ascii=False))
