"""Where things stand on the page."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import Font

from intclip.serving.app.views import PAGE

TITLE = "Why was this photo taken?"
LEAD = (
    "Drop photos: each bar is how probable a reason for taking or sharing the photo is; "
    "choose a bar to see where in the photo its evidence lies."
)
OWN_HINT = "A quiet morning\nShowing off my cat\nWanderlust"


@dataclass(frozen=True)
class Page:
    """The components that callbacks read or change; `state` holds the `Session`."""

    state: Any
    drop: Any
    strip: Any
    figure: Any
    branch: Any
    fine: Any
    caption: Any
    words: Any
    own: Any
    own_note: Any
    model: Any
    level: Any
    threshold: Any
    only: Any
    reset: Any
    bars: Any
    labels: Any
    keep: Any
    forget: Any
    download: Any


def read_page_file(name: str) -> str:
    """One of the page's style sheets, scripts or templates."""
    return (PAGE / name).read_text(encoding="utf-8")


def make_theme() -> Any:
    """Quiet colours, the system's own type: nothing is fetched from another host."""
    fonts = [Font(name) for name in ("system-ui", "sans-serif")]
    mono = [Font(name) for name in ("ui-monospace", "monospace")]
    return gr.themes.Base(font=fonts, font_mono=mono, radius_size="md", spacing_size="md", text_size="md").set(
        body_background_fill="var(--ic-paper)",
        body_background_fill_dark="var(--ic-paper)",
        body_text_color="var(--ic-ink)",
        body_text_color_dark="var(--ic-ink)",
        body_text_color_subdued="var(--ic-soft)",
        body_text_color_subdued_dark="var(--ic-soft)",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_info_text_color="var(--ic-soft)",
        block_info_text_color_dark="var(--ic-soft)",
        block_title_text_color="var(--ic-soft)",
        block_title_text_color_dark="var(--ic-soft)",
        block_title_text_weight="500",
        block_padding="0px",
        block_shadow="none",
        border_color_primary="var(--ic-line)",
        border_color_primary_dark="var(--ic-line)",
        border_color_accent="var(--ic-accent)",
        border_color_accent_dark="var(--ic-accent)",
        color_accent="var(--ic-accent)",
        color_accent_soft="var(--ic-weak)",
        color_accent_soft_dark="var(--ic-weak)",
        input_background_fill="var(--ic-card)",
        input_background_fill_dark="var(--ic-card)",
        input_border_width="1px",
        input_border_color="var(--ic-line)",
        input_border_color_dark="var(--ic-line)",
        input_border_color_focus="var(--ic-accent)",
        input_border_color_focus_dark="var(--ic-accent)",
        slider_color="var(--ic-accent)",
        slider_color_dark="var(--ic-accent)",
        button_border_width="1px",
        button_secondary_border_color="var(--ic-line)",
        button_secondary_border_color_dark="var(--ic-line)",
        button_primary_border_color="var(--ic-accent)",
        button_primary_border_color_dark="var(--ic-accent)",
        button_secondary_background_fill="var(--ic-card)",
        button_secondary_background_fill_dark="var(--ic-card)",
        button_secondary_background_fill_hover="var(--ic-weak)",
        button_secondary_background_fill_hover_dark="var(--ic-weak)",
        button_secondary_text_color="var(--ic-ink)",
        button_secondary_text_color_dark="var(--ic-ink)",
        button_primary_background_fill="var(--ic-accent)",
        button_primary_background_fill_dark="var(--ic-accent)",
        button_primary_background_fill_hover="var(--ic-accent)",
        button_primary_background_fill_hover_dark="var(--ic-accent)",
        button_primary_text_color="var(--ic-card)",
        button_primary_text_color_dark="var(--ic-paper)",
        background_fill_primary="var(--ic-card)",
        background_fill_primary_dark="var(--ic-card)",
        background_fill_secondary="var(--ic-paper)",
        background_fill_secondary_dark="var(--ic-paper)",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
    )


def lay_out(models: list[str]) -> Page:
    """Build the page inside the current `gr.Blocks`; the first fill is the callbacks' business.

    Args:
        models: Names, the first is chosen.
    """
    choose = read_page_file("choose.js")
    gr.HTML(f'<header class="ic-head"><h1>{TITLE}</h1><p>{LEAD}</p></header>', js_on_load=None)
    with gr.Row(elem_id="ic-columns", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_id="ic-left"):
            drop = gr.HTML(
                "", html_template=read_page_file("drop.html"), js_on_load=read_page_file("drop.js"), elem_id="ic-drop"
            )
            strip = gr.HTML(js_on_load=choose, elem_id="ic-photos")
            figure = gr.HTML(js_on_load=None, elem_id="ic-figure")
            with gr.Row(elem_id="ic-evidence", equal_height=False):
                branch = gr.Radio([], label="Evidence", elem_id="ic-branch", elem_classes="ic-segments")
                fine = gr.Checkbox(label="finer", elem_id="ic-fine", container=False)
            caption = gr.Textbox(
                label="Caption of the post",
                placeholder="The words that were shared with the photo",
                lines=2,
                visible=False,
                elem_id="ic-caption",
            )
            words = gr.HTML(js_on_load=None, visible=False, elem_id="ic-words")
            own = gr.Textbox(
                label="Your own intents, one a line: scored at once, without training",
                placeholder=OWN_HINT,
                lines=3,
                max_lines=12,
                elem_id="ic-own",
            )
            own_note = gr.HTML(js_on_load=None, elem_id="ic-own-note")
        with gr.Column(scale=7, min_width=320, elem_id="ic-right"):
            with gr.Row(elem_id="ic-controls", equal_height=False):
                model = gr.Dropdown(models, value=models[0], label="Model", elem_id="ic-model", min_width=150, scale=3)
                with gr.Column(scale=5, min_width=220, elem_id="ic-thresholds"):
                    threshold = gr.Slider(
                        0, 100, value=50, step=1, label="Threshold, %", buttons=[], elem_id="ic-threshold"
                    )
                    with gr.Row(elem_id="ic-threshold-row"):
                        only = gr.Checkbox(label="this intent only", elem_id="ic-only", container=False, min_width=100)
                        reset = gr.Button("the model’s own", size="sm", elem_id="ic-reset", min_width=100, scale=0)
            level = gr.Radio([], label="Level", elem_id="ic-level", elem_classes="ic-segments")
            bars = gr.HTML(js_on_load=choose, elem_id="ic-bars")
            with gr.Column(elem_id="ic-correct"):
                labels = gr.Dropdown(
                    [],
                    multiselect=True,
                    label="Wrong? Set what holds for this photo, keep it, and train on the table",
                    elem_id="ic-labels",
                )
                with gr.Row():
                    keep = gr.Button(
                        "Keep these labels", variant="primary", size="md", elem_id="ic-keep", min_width=120
                    )
                    forget = gr.Button("Forget", size="md", elem_id="ic-forget", min_width=80)
                    download = gr.DownloadButton("Download CSV", size="md", elem_id="ic-download", min_width=120)
    state = gr.State()
    return Page(
        state=state,
        drop=drop,
        strip=strip,
        figure=figure,
        branch=branch,
        fine=fine,
        caption=caption,
        words=words,
        own=own,
        own_note=own_note,
        model=model,
        level=level,
        threshold=threshold,
        only=only,
        reset=reset,
        bars=bars,
        labels=labels,
        keep=keep,
        forget=forget,
        download=download,
    )
