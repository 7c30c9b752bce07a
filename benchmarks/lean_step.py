"""Effect of each saving of the lean step: text encoding and region projection, forward and backward, in turns.

    python -m benchmarks.lean_step --out docs/figures/lean_step.json

Every row adds one saving to the previous row; all give the same numbers (`tests/backbones/test_lean_paths.py`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import write_report
from benchmarks.reference import ReferenceIntCLIP
from benchmarks.setup import our_method, parse, parser, resnets
from intclip.backbones.clip_resnet import AttentionPool
from intclip.backbones.clip_text import ClipText
from intclip.methods.prompts import PromptLearner
from intclip.timing import paired


def whole_sequence(text: ClipText, embeddings: Tensor, lengths: Tensor) -> Tensor:
    """Compute every block at every position, then read at the end token."""
    tokens = text.blocks(embeddings + text.positional_embedding[: embeddings.shape[1]])
    features: Tensor = text.ln_final(tokens[torch.arange(len(tokens)), lengths - 1]) @ text.text_projection
    return features


def text_steps(reference: ReferenceIntCLIP, text: ClipText, prompts: PromptLearner) -> dict[str, Callable[[], Tensor]]:
    """Return encodings of the 2K prompts, from the released version to ours."""

    def halves() -> Tensor:
        embeddings, lengths = prompts.embeddings()
        parts = [text._encode(part, row) for part, row in zip(embeddings.chunk(2), lengths.chunk(2), strict=True)]
        return torch.cat(parts)

    return {
        "released: 77 tokens, weights take gradients": reference.encode_prompts,
        "weights frozen, 77 tokens": lambda: whole_sequence(text, *padded(*prompts.embeddings())),
        "as long as the longest prompt": lambda: whole_sequence(text, *prompts.embeddings()),
        "last block at the end only": lambda: text._encode(*prompts.embeddings()),
        "two batches by length (ours)": lambda: text.encode_embeddings(*prompts.embeddings()),
        "instead: negative and positive apart": halves,
    }


def padded(embeddings: Tensor, lengths: Tensor, context_length: int = 77) -> tuple[Tensor, Tensor]:
    """Pad embeddings with zeros to the context length."""
    return torch.nn.functional.pad(embeddings, (0, 0, 0, context_length - embeddings.shape[1])), lengths


def two_projections(head: AttentionPool, deep: Tensor) -> Tensor:
    """Compute region features by both projections."""
    positions = deep.flatten(2).transpose(1, 2) + head.positional_embedding[1:]
    regions: Tensor = head.c_proj(head.v_proj(positions))
    return regions


def with_backward(function: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: torch.autograd.backward(function().sum())


def main() -> None:
    arguments = parse(parser(__doc__))
    reference, backbone = resnets()
    text, head = backbone.text, backbone.head
    assert isinstance(text, ClipText)
    assert isinstance(head, AttentionPool)
    report: dict[str, object] = {"batch": arguments.batch}
    for form in ("11-15", "6-9"):
        prompts = our_method(backbone, sentence_form=form).train().prompts
        assert isinstance(prompts, PromptLearner)
        steps = {name: with_backward(step) for name, step in text_steps(reference, text, prompts).items()}
        report[f"text, sentences of {form} words"] = paired(
            steps, baseline=next(iter(steps)), repeats=arguments.repeats, clock=arguments.clock
        )
    deep = torch.randn(arguments.batch, 2048, 7, 7).requires_grad_()
    report["regions"] = paired(
        {
            "two projections": with_backward(lambda: two_projections(head, deep)),
            "one projection (ours)": with_backward(lambda: head.regions(deep)),
        },
        baseline="two projections",
        repeats=2 * arguments.repeats,
        clock=arguments.clock,
    )
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
