"""Shared parts of benchmarks: models with the same random weights, and command-line options."""

import argparse
from pathlib import Path

import torch

from benchmarks.reference import ReferenceIntCLIP
from benchmarks.weights import RN101, random_state_dict
from intclip.backbones import from_openai_state_dict
from intclip.backbones.architecture import Split
from intclip.backbones.base import Backbone
from intclip.backbones.clip import ClipBackbone
from intclip.labels import load_taxonomy
from intclip.methods.intclip.model import IntCLIP
from intclip.methods.registry import build_method

CONTEXTS = 16


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the common options."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    options.add_argument("--repeats", type=int, default=5, help="rounds that count")
    options.add_argument("--batch", type=int, default=32, help="photos a batch")
    options.add_argument("--threads", type=int, default=None, help="threads; all cores by default")
    options.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu where the machine is shared")
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse options; set the number of threads and the seed."""
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def our_method(backbone: Backbone, **changes: object) -> IntCLIP:
    """Build IntCLIP on the Intentonomy labels with the paper's options and changes to them."""
    method = build_method("intclip", backbone, load_taxonomy("intentonomy"), changes)
    assert isinstance(method, IntCLIP)
    return method


def resnets(split: Split = "paper") -> tuple[ReferenceIntCLIP, ClipBackbone]:
    """Build the reference and our RN101 with the same random weights."""
    state = random_state_dict(RN101)
    backbone = from_openai_state_dict(state, split=split)
    sentences = load_taxonomy("intentonomy").sentences()
    prompts = backbone.tokenize([" ".join(["x"] * CONTEXTS) + " " + sentence for sentence in sentences])
    tokens = torch.zeros(len(prompts), RN101.context_length, dtype=torch.int64)
    tokens[:, : prompts.shape[1]] = prompts
    reference = ReferenceIntCLIP(RN101, tokens, CONTEXTS)
    reference.load_openai(state)
    return reference, backbone
