"""Send photos to a running `intclip serve`, and save the evidence for the first photo's most probable label.

    intclip serve &
    python examples/ask_service.py photo.jpg other.jpg

The client also needs `pip install 'intclip[app]'`; any other HTTP client works too, see docs/api.md.
"""

import sys
from pathlib import Path

from intclip.errors import IntclipError
from intclip.serving.client import Client


def main(photos: list[str]) -> None:
    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict(photos)
        for result in answer.results:
            if result.scores is None:
                print(result.error)
                continue
            best = sorted(result.scores, key=result.scores.__getitem__, reverse=True)[:3]
            print(result.source, ", ".join(f"{label} {result.scores[label]:.2f}" for label in best))
        first = next(result for result in answer.results if result.scores is not None)
        label = max(first.scores, key=first.scores.__getitem__)
        photo = photos[answer.results.index(first)]
        picture = client.explain(photo, label, picture=True).picture_bytes()
        Path("evidence.jpg").write_bytes(picture or b"")
        print(f"evidence of {label!r} in evidence.jpg")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except IntclipError as error:
        sys.exit(str(error))
