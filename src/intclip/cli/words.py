"""Word evidence on a terminal."""

from intclip.evidence.words import FAINT, WordEvidence

_SHOWN = 12
_BAR = 20


def print_words(evidence: WordEvidence) -> None:
    """Print the label, the text with words coloured by weight, and the words with the largest weights."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    told = f"{evidence.unit} {evidence.score:.2f}"
    if evidence.probability is not None:
        told = f"{evidence.probability:.3f}, {told}"
    console.print(Text(f"{evidence.label}: {told} from the text alone"))
    most = max(abs(weight) for _, weight in evidence.words) or 1.0
    text = Text("  ")
    for word, weight in evidence.words:
        share = weight / most
        text.append(word, style="" if abs(share) < FAINT else ("bold red" if share > 0 else "blue")).append(" ")
    console.print(text)
    for word, weight in sorted(evidence.words, key=lambda entry: -abs(entry[1]))[:_SHOWN]:
        bar = "━" * round(_BAR * abs(weight) / most)
        console.print(Text(f"  {weight:+8.3f} {bar:<{_BAR}} {word}", style="red" if weight > 0 else "blue"))
