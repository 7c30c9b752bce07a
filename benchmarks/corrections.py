"""From corrections to a model: a script corrects photos in the app, in Chromium, and trains a model on them.

    INTCLIP_DATA=/data python -m benchmarks.corrections --answers 50

The answers are the proxy intents of `$INTCLIP_DATA/flickr8k`. Photos of its train split are corrected with the
keyboard, then "Train a model on my answers" is pressed. The old and the new model predict photos of the val split,
which are not corrected: agreement is micro F1 of the predicted intents against the proxies.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.pictures import app, find_browser
from intclip.data.registry import load_dataset
from intclip.data.sample import Sample
from intclip.inference.loading import load

PATIENCE = 1_200_000
"""Milliseconds, per step."""


def correct(page: Page, wanted: set[str]) -> int:
    """Correct the photo on the page and go on to the next; return how many intents were switched."""
    page.wait_for_function("() => state.photo?.answers.get(reader().key)?.values && state.chips.length")
    on = set(page.evaluate("() => [...draft(state.photo, state.photo.answers.get(reader().key))]"))
    chips: list[str] = page.evaluate("() => state.chips")
    for name in sorted(on ^ wanted):
        if name in chips:
            page.keyboard.press(str(chips.index(name) + 1))
        elif name in wanted:
            page.locator("#more-labels").select_option(name)
            page.locator("#more-labels").blur()
        else:
            page.locator("#chips button", has_text=name).click()
            page.locator("#chips button", has_text=name).blur()
    page.keyboard.press("Enter")
    return len(on ^ wanted)


def predicted(page: Page, photos: int) -> dict[str, set[str]]:
    """Wait for all predictions; return the predicted intents by photo."""
    page.wait_for_function(
        "many => state.photos.length === many"
        " && state.photos.every((photo) => photo.answers.get(reader().key)?.values)",
        arg=photos,
        timeout=PATIENCE,
    )
    shown = page.evaluate(
        "() => state.photos.map((photo) => [photo.name, "
        "summary(photo.answers.get(reader().key)).holding.map((one) => one.name)])"
    )
    return {name: set(labels) for name, labels in shown}


def micro_f1(found: dict[str, set[str]], wanted: dict[str, set[str]]) -> float:
    """Micro F1 over the photos of `wanted`."""
    hits = sum(len(found[name] & labels) for name, labels in wanted.items())
    return 2 * hits / sum(len(found[name]) + len(labels) for name, labels in wanted.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=50, help="photos corrected")
    parser.add_argument("--others", type=int, default=300, help="photos that nobody corrects")
    parser.add_argument("--seed", type=int, default=0, help="which photos")
    asked = parser.parse_args()
    dataset = load_dataset("proxy-intents", Path(os.environ.get("INTCLIP_DATA", "."), "flickr8k"))
    names = dataset.taxonomy.names
    chance = random.Random(asked.seed)

    def choose(split: str, many: int) -> dict[Path, set[str]]:
        samples: Sequence[Sample] = chance.sample(dataset.splits[split], many)
        share = dataset.positive_share
        return {
            Path(str(one.image)): {name for name, votes in zip(names, one.targets, strict=True) if votes >= share}
            for one in samples
        }

    mine, others = choose("train", asked.answers), choose("val", asked.others)
    wanted = {path.name: labels for path, labels in others.items()}
    models = {"lite": load("lite", taxonomy="proxy-intents"), "proxy": load("proxy")}
    with (
        sync_playwright() as running,
        tempfile.TemporaryDirectory() as folder,
        app(models, Path(folder)) as address,
    ):
        browser = running.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("body[data-ready]").wait_for()
        page.set_input_files("#files", list(mine))
        start = time.perf_counter()
        switched = sum(correct(page, labels) for labels in mine.values())
        answered = time.perf_counter() - start
        page.wait_for_function("many => state.photos.length === many && !work.running", arg=len(mine))
        told = page.locator("#agreement-text").inner_text()
        page.set_input_files("#files", list(others))
        before = predicted(page, len(mine) + len(others))
        start = time.perf_counter()
        page.locator("#train").click()
        page.wait_for_function("() => state.trained")
        trained = time.perf_counter() - start
        note = page.locator("#train-note").inner_text()
        chosen = page.locator("#model").input_value()
        page.locator("#model").select_option("mine")
        after = predicted(page, len(mine) + len(others))
        browser.close()
    print(
        json.dumps(
            {
                "answers": len(mine),
                "intents_switched": switched,
                "seconds_of_answering": round(answered, 1),
                "seconds_of_training": round(trained, 1),
                "other_photos": len(others),
                "agreement_before": round(micro_f1(before, wanted), 3),
                "agreement_after": round(micro_f1(after, wanted), 3),
                "model_that_the_page_chose": chosen,
                "the_page_says": [told, note],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
