"""Texts per second through MiniLM in torch and on the engine, alternating in one process.

    python -m benchmarks.texts [--texts 256] [--turns 3] [--out docs/figures/texts.json]

Texts have 60 to 140 made-up words. Rates are texts per CPU second, which depends less on other load; the best turn
counts.
"""

import argparse
import random
import time
from pathlib import Path

import torch

from benchmarks.machine import write_report
from intclip.backbones import load_backbone
from intclip.backbones.base import TextTower
from intclip.inference.text_engine import PAYS_FROM, use_engine

WORDS = ("photo", "friends", "beach", "sunset", "people", "share", "moment", "family", "remarkable", "of", "the")


def made_texts(rng: random.Random, count: int) -> list[str]:
    """Return texts of 60 to 140 words."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(60, 140))) for _ in range(count)]


def rate(tower: TextTower, texts: list[str]) -> float:
    """Return texts per CPU second."""
    start = time.process_time()
    tower.embed_texts(texts)
    return len(texts) / (time.process_time() - start)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    texts = made_texts(random.Random(0), arguments.texts)
    plain, fast = load_backbone("lite").text, load_backbone("lite").text
    use_engine(fast)
    for _ in range(2):  # the second call converts
        fast.embed_texts(texts[:PAYS_FROM])
    turns = [(rate(plain, texts), rate(fast, texts)) for _ in range(arguments.turns)]
    torch_rate, engine_rate = (max(each) for each in zip(*turns, strict=True))
    difference = float((plain.embed_texts(texts) - fast.embed_texts(texts)).abs().max())
    write_report(
        arguments.out,
        {
            "texts": arguments.texts,
            "torch_per_cpu_s": round(torch_rate, 1),
            "openvino_per_cpu_s": round(engine_rate, 1),
            "ratio": round(engine_rate / torch_rate, 2),
            "largest_difference": difference,
            "torch_threads": torch.get_num_threads(),
        },
    )


if __name__ == "__main__":
    main()
