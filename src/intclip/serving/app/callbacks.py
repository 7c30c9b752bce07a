"""What happens when the visitor does something: a change of the session, then the parts that depend on it anew."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from intclip.errors import ImageError, IntclipError
from intclip.serving.app import views
from intclip.serving.app.layout import Page
from intclip.serving.app.own_intents import read_intents
from intclip.serving.app.session import PHOTO_ALONE, Photo, Session, write_corrections
from intclip.serving.app.studio import Studio, read_photo

MOST_PHOTOS = 1000
"""Photos of a page; `intclip report` takes any number."""
READING = (
    "strip", "figure", "branch", "fine", "words", "level", "threshold", "only", "reset", "bars", "labels", "download"
)  # fmt: skip
"""Parts that follow from who reads the photos, and from the photo."""
WITHIN = "(session, percent, only) => [session, Math.min(100, Math.max(0, percent)), only]"
"""A percentage as it is typed may be any number; Gradio refuses those that its box shows as 0 or 100 a moment later."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Callbacks:
    """The page's behaviour.

    Args:
        page: The components.
        studio: The models.
    """

    page: Page
    studio: Studio

    def wire(self) -> None:
        """Tie every event to its change, inside the current `gr.Blocks`."""
        page = self.page
        self._on_choice(
            page.strip,
            self.choose_photo,
            ("strip", "figure", "caption", "words", "threshold", "only", "bars", "labels"),
        )
        self._on_choice(page.bars, self.choose_label, ("figure", "words", "threshold", "only", "bars"))
        self._on(page.branch.input, self.choose_branch, page.branch, ("figure", "fine"))
        self._on(page.fine.input, self.choose_fine, page.fine, ("figure",))
        self._on(page.level.input, self.choose_level, page.level, ("bars",))
        self._on(page.model.input, self.choose_model, page.model, ("caption", "own", "own_note", *READING))
        # `change`, not `input`: pasted text is no input to Gradio.
        self._on(page.own.change, self.write_own, page.own, ("own_note", "caption", *READING))
        self._on(
            page.caption.change,
            self.write_caption,
            page.caption,
            ("strip", "figure", "words", "threshold", "only", "bars", "labels"),
        )
        self._on(page.threshold.input, self.slide, [page.threshold, page.only], ("bars", "labels"), js=WITHIN)
        self._on(page.reset.click, self.reset_thresholds, [], ("threshold", "bars", "labels"))
        self._on(page.keep.click, self.keep_labels, page.labels, ("drop", "strip", "download"))
        self._on(page.forget.click, self.forget_labels, [], ("drop", "strip", "labels", "download"))

        def take(session: Session, event: gr.EventData) -> list[Any]:
            return self._change(
                session, lambda: self.add_photos(session, event.files, event.left), ("drop", "caption", *READING)
            )

        outputs = [getattr(page, part) for part in ("drop", "caption", *READING)]
        page.drop.upload(take, page.state, outputs, show_progress="hidden", api_visibility="private")

    def first_fill(self) -> None:
        """Give the components what a new page shows, so that it opens with the examples scored."""
        session = self.studio.new_session()
        self.page.state.value = session
        for part in ("drop", "caption", "own_note", *READING):
            component, change = getattr(self.page, part), self._view(part, session)
            values = change if isinstance(change, dict) else {"value": change}
            for name, value in values.items():
                if name == "choices":
                    value = [pair if isinstance(pair, tuple) else (pair, pair) for pair in value]
                if name != "__type__":
                    setattr(component, name, value)

    def add_photos(self, session: Session, files: list[dict[str, str]], left: int) -> None:
        """Take uploaded photos; those that cannot be read are named in the notice."""
        home = Path(gr.utils.get_upload_folder()).resolve()
        examples = session.photos == self.studio.examples
        room = MOST_PHOTOS - (0 if examples else len(session.photos))
        taken: list[Photo] = []
        refused: list[str] = []
        for file in files:
            path = Path(file["path"]).resolve()
            if not path.is_relative_to(home):
                raise IntclipError("a photo did not come by upload; drop it again")
            if len(taken) >= room:
                left += 1
                continue
            try:
                taken.append(read_photo(path, str(file["name"])))
            except ImageError as error:
                refused.append(str(error))
        if taken:
            if examples:  # the visitor's own photos take their place
                session.photos = []
                session.kept.clear()
                session.captions.clear()
            session.place = len(session.photos)
            session.photos.extend(taken)
        parts = [f"{len(taken)} photo{'' if len(taken) == 1 else 's'} added"]
        parts += [f"left out {left}, a page takes 500 at once and {MOST_PHOTOS} in all"] if left else []
        parts += [refused[0] + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else "")] if refused else []
        session.tell("; ".join(parts) + ".")

    def choose_photo(self, session: Session, place: int) -> None:
        """Look at another photo."""
        if 0 <= place < len(session.photos):
            session.place = place

    def choose_label(self, session: Session, index: int) -> None:
        """Show the evidence of a label."""
        names = self.studio.reader(session).taxonomy.names
        if 0 <= index < len(names):
            session.label = names[index]

    def choose_branch(self, session: Session, branch: str) -> None:
        """Show another map."""
        session.branch = branch

    def choose_fine(self, session: Session, fine: bool) -> None:
        """Show finer maps, or coarse ones."""
        session.fine = fine

    def choose_level(self, session: Session, level: int) -> None:
        """Show another level of the hierarchy."""
        session.level = level

    def choose_model(self, session: Session, name: str) -> bool:
        """Have another model read the photos, with its own labels; False where it does already."""
        if session.model == name:  # a list of choices tells its choice again when it is left
            return False
        session.model, session.level, session.own = name, 0, ""
        return True

    def write_own(self, session: Session, text: str) -> None:
        """Score against the visitor's own intents; an empty box goes back to the model's."""
        read_intents(text)
        session.own = text

    def write_caption(self, session: Session, text: str) -> bool:
        """Read the words beside the photo; False where they are read already."""
        if text == session.captions.get(session.place, ""):
            return False
        session.captions[session.place] = text
        return True

    def slide(self, session: Session, percent: float, only: bool) -> None:
        """Move the threshold of all labels, or of the one whose evidence is shown."""
        reader = self.studio.reader(session)
        moved = session.thresholds.setdefault(reader.name, {})
        label = self._label(session)
        for name in [label] if only and label is not None else reader.taxonomy.names:
            moved[name] = percent / 100

    def reset_thresholds(self, session: Session) -> None:
        """Go back to the model's own."""
        session.thresholds.pop(self.studio.reader(session).name, None)

    def keep_labels(self, session: Session, labels: list[str] | str | None) -> None:
        """Keep what the visitor says of the photo."""
        if session.photo is None:
            raise IntclipError("there is no photo to correct; drop one")
        reader = self.studio.reader(session)
        chosen = [labels] if isinstance(labels, str) else labels or []
        kept = session.kept.setdefault(reader.name, {})
        if any(session.photos[place].name == session.photo.name for place in kept if place != session.place):
            raise IntclipError(f"another photo called {session.photo.name} is corrected already; rename one of them")
        kept[session.place] = tuple(name for name in reader.taxonomy.names if name in chosen)
        photos = "1 photo" if len(kept) == 1 else f"{len(kept)} photos"
        session.tell(f"{session.photo.name} kept; {photos} in the table. Save it beside your photos.")

    def forget_labels(self, session: Session) -> None:
        """Take the photo out of the table."""
        if (
            session.photo
            and session.kept.get(self.studio.reader(session).name, {}).pop(session.place, None) is not None
        ):
            session.tell(f"{session.photo.name} taken out of the table.")

    def _on(
        self,
        event: Any,
        change: Callable[..., bool | None],
        inputs: Any,
        parts: tuple[str, ...],
        js: str | None = None,
    ) -> None:
        def handler(session: Session, *values: Any) -> list[Any]:
            return self._change(session, lambda: change(session, *values), parts)

        given = inputs if isinstance(inputs, list) else [inputs]
        outputs = [getattr(self.page, part) for part in parts]
        event(
            handler,
            [self.page.state, *given],
            outputs,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
            js=js,
        )

    def _on_choice(self, component: Any, change: Callable[[Session, int], None], parts: tuple[str, ...]) -> None:
        def handler(session: Session, event: gr.EventData) -> list[Any]:
            return self._change(session, lambda: change(session, int(event.choice)), parts)

        outputs = [getattr(self.page, part) for part in parts]
        component.click(
            handler,
            self.page.state,
            outputs,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def _change(self, session: Session, change: Callable[[], bool | None], parts: tuple[str, ...]) -> list[Any]:
        """Make a change and draw the parts; what the visitor can mend is said, and page and session stay as they were.

        A change that returns False changed nothing. Changes of one page wait for each other: photos may be scored for
        seconds, and a model chosen meanwhile would draw some of the parts and not the others.
        """
        with session.changing:
            before = session.remember()
            try:
                if change() is False:
                    return [gr.skip() for _ in parts]
                return [self._view(part, session) for part in parts]
            except IntclipError as error:
                session.go_back(before)
                if "own_note" in parts:
                    return [_note(str(error)) if part == "own_note" else gr.skip() for part in parts]
                gr.Warning(escape(str(error)))
                session.tell(str(error))  # in place of "Scoring …", which the page itself wrote there
                return [self._drop(session) if part == "drop" else gr.skip() for part in parts]
            except Exception:
                session.go_back(before)
                raise

    def _label(self, session: Session) -> str | None:
        if session.photo is None:
            return None
        return views.show_label(session, self.studio.predict(session)[session.place])

    def _view(self, part: str, session: Session) -> Any:
        if part in ("strip", "figure", "bars"):
            return getattr(views, part)(session, self.studio)
        return getattr(self, f"_{part}")(session)

    def _drop(self, session: Session) -> str:
        return views.notice(session)

    def _branch(self, session: Session) -> Any:
        maps = self.studio.reader(session).maps
        choices = [(called, name) for name, (called, _) in views.branches(maps).items()]
        return gr.update(choices=choices, value=views.show_branch(session, maps), visible=bool(maps))

    def _fine(self, session: Session) -> Any:
        reader = self.studio.reader(session)
        shown = reader.fine and views.show_branch(session, reader.maps) != PHOTO_ALONE
        return gr.update(value=session.fine, visible=shown)

    def _caption(self, session: Session) -> Any:
        reads = self.studio.reader(session).reads
        return gr.update(value=session.captions.get(session.place, ""), visible="text" in reads)

    def _words(self, session: Session) -> Any:
        shown = views.words(session, self.studio)
        return gr.update(value=shown, visible=bool(shown))

    def _own(self, session: Session) -> str:
        return session.own

    def _own_note(self, session: Session) -> str:
        if not session.own.strip():
            return _note("")
        return _note(
            f"Scored by {self.studio.own_intents.backbone_name}. Empty the box to go back to the model’s intents."
        )

    def _level(self, session: Session) -> Any:
        levels = self.studio.reader(session).taxonomy.levels
        choices = [(name, place) for place, name in enumerate(levels)]
        session.level = min(session.level, len(choices) - 1)
        return gr.update(choices=choices, value=session.level, visible=len(choices) > 1)

    def _threshold(self, session: Session) -> Any:
        reader, label = self.studio.reader(session), self._label(session)
        if session.photo is None or label is None:
            return gr.update()
        prediction = self.studio.predict(session)[session.place]
        percent = round(100 * float(prediction.thresholds[reader.taxonomy.index(label)]))
        return gr.update(value=percent, visible=not reader.taxonomy.exclusive)

    def _only(self, session: Session) -> Any:
        label = self._label(session)
        exclusive = self.studio.reader(session).taxonomy.exclusive
        return gr.update(label=f"only for {label}" if label else "this intent only", visible=not exclusive)

    def _reset(self, session: Session) -> Any:
        return gr.update(visible=not self.studio.reader(session).taxonomy.exclusive)

    def _labels(self, session: Session) -> Any:
        reader = self.studio.reader(session)
        kept = session.kept.get(reader.name, {}).get(session.place)
        if kept is None and session.photo is not None:
            kept = tuple(self.studio.predict(session)[session.place].labels)
        names = list(reader.taxonomy.names)
        return gr.update(choices=names, value=[name for name in kept or () if name in names])

    def _download(self, session: Session) -> Any:
        name = self.studio.reader(session).name
        path = write_corrections(session, name, Path(gr.utils.get_upload_folder()))
        if path is not None:
            self.page.download.temp_files.add(str(path))  # removed with the photos, when the page ends or after a day
        count = len(session.kept.get(name, {}))
        return gr.update(
            value=None if path is None else str(path),
            label=f"Download CSV ({count})" if count else "Download CSV",
            interactive=path is not None,
        )


def _note(text: str) -> str:
    return f'<p class="ic-says" role="status">{escape(text)}</p>' if text else ""
