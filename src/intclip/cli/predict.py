"""`intclip predict`."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from intclip.cli.options import ModelChoice, Reading, ReadText, with_options
from intclip.cli.outputs import Display, Outputs, Results

if TYPE_CHECKING:
    from intclip.data.images import ImageInput

LONG_WORK = 64
"""Minimum number of photos for a progress bar."""


@with_options
def predict(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, quoted patterns such as 'trip/*.jpg', .txt lists of paths; tables (.csv, .jsonl, "
            ".parquet) with columns image and text; - reads a list, or one photo, from standard input."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text of the post, with or without its photo; for models of `intclip fit`."),
    ] = None,
    read_text: ReadText = False,
    *,
    choice: ModelChoice,
    shown: Display,
    outputs: Outputs,
    reading: Reading,
) -> None:
    """Predict why photos were taken.

    A filled dot marks labels at or above their threshold. Photos that cannot be read are listed at the end and the
    exit code is 2; all other results are written. For posts with photo and text, models of `intclip fit`
    also report how much the two contradict each other: conflict, from 0 (they agree) to 1.

    intclip predict photo.jpg

    intclip predict holiday/ --csv intents.csv

    intclip predict 'trip/*.jpg' --json --level group

    intclip predict posts.csv --model models/mine --csv intents.csv

    find . -name '*.jpg' | intclip predict - --xmp
    """
    from intclip.cli.common import progress_bar, words_read
    from intclip.data.sample import Lenient
    from intclip.errors import IntclipError

    images, words = _posts(photos or [], text, reading.exclude or [])
    outputs.check(photos or [], images)
    predictor = choice.load()
    texts: Iterable[str | None] | None = words_read(predictor, images, words) if text is None else words
    if read_text:
        from intclip.data.ocr import add_words

        if "text" not in predictor.channels:
            raise IntclipError(f"{predictor.card.model} uses only photos; --read-text needs a model of `intclip fit`")
        texts = add_words(images, words)
    predictions = predictor.predict_iter(
        [Lenient(image) if reading.lenient and image is not None else image for image in images],
        texts=texts,
        batch_size=reading.batch_size,
        thresholds=shown.threshold,
        errors="collect",
        workers=reading.workers,
    )
    with ExitStack() as stack:
        results = Results(outputs, shown, predictor, stack)
        progress = stack.enter_context(progress_bar("predicting")) if len(images) >= LONG_WORK else None
        for done, (image, prediction) in enumerate(zip(images, predictions, strict=True), start=1):
            results.write(image, prediction)
            if progress is not None:
                progress(done, len(images))
    results.finish()


def _posts(
    photos: Sequence[str], text: str | None, exclude: Sequence[str]
) -> "tuple[list[ImageInput | None], list[str | None]]":
    """Return photos and texts of posts, None where one is missing."""
    from intclip.data.unlabelled import read_posts
    from intclip.errors import IntclipError

    if not photos and text is None:
        raise IntclipError("give photos, a table of posts, or --text")
    images, texts = read_posts(photos, exclude=exclude)
    if text is not None:
        if len(images) > 1 or any(texts):
            raise IntclipError("--text is for one photo; for several posts give a table with columns image and text")
        return images or [None], [text]
    return images, texts
