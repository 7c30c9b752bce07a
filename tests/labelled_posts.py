"""Labelled posts whose colour and words determine the label."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"sea": ((20, 60, 200), "waves on the beach and a blue sea"), "fire": ((220, 60, 20), "a hot fire burning")}


def write_posts(folder: Path, count: int) -> Path:
    """`posts.csv` and its photos `0.png` …, sea and fire in turn; every sixth post is labelled with both."""
    rng = np.random.default_rng(0)
    with (folder / "posts.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "text", "labels"])
        for i in range(count):
            kind = list(KINDS)[i % 2]
            colour, text = KINDS[kind]
            noise = rng.normal(scale=20, size=(64, 64, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", f"{text} number {i}", kind if i % 6 else "sea;fire"])
    return folder / "posts.csv"
