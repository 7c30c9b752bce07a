"""The `intclip` command and its panels."""

from typing import Annotated, Any

import typer

from intclip.cli.ablate import ablate
from intclip.cli.app import app as app_command
from intclip.cli.batch import batch
from intclip.cli.benchmark import benchmark
from intclip.cli.calibrate import calibrate
from intclip.cli.data import app as data_app
from intclip.cli.demo import demo
from intclip.cli.describe import describe
from intclip.cli.distill import distill
from intclip.cli.evaluate import evaluate
from intclip.cli.explain import explain
from intclip.cli.export import export
from intclip.cli.fit import fit
from intclip.cli.labels import app as labels_app
from intclip.cli.lite_align import lite_align
from intclip.cli.mccl import app as mccl_app
from intclip.cli.mcp import mcp
from intclip.cli.models import models
from intclip.cli.options import PanelledCommand
from intclip.cli.predict import predict
from intclip.cli.process import prepare_process, run_to_exit
from intclip.cli.push import push
from intclip.cli.report import report
from intclip.cli.search import index, search
from intclip.cli.serve import serve
from intclip.cli.train import train

PANELS = {
    "Use": (predict, batch, index, search, explain, report, app_command, serve, mcp, demo, models),
    "Learn": (fit, train, evaluate, calibrate, describe, data_app, labels_app),
    "Research": (ablate, distill, benchmark, lite_align, mccl_app),
    "Deploy": (export, push),
}
"""Commands and command groups, by purpose."""


class _Panels(typer.core.TyperGroup):
    """List commands by panel; Typer only does so with Rich, which is slow to import."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel."""
        width = max(map(len, self.commands))
        for panel in PANELS:
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - 6 - width))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == panel
            ]
            with formatter.section(panel):
                formatter.write_dl(rows)


app = typer.Typer(
    name="intclip",
    help="Predict why photos were taken or shared, and what they make people feel.",
    cls=_Panels,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from intclip.version import __version__

        print(__version__)
        raise typer.Exit


for _panel, _members in PANELS.items():
    for _member in _members:
        if isinstance(_member, typer.Typer):
            for _command in _member.registered_commands:
                _command.cls = PanelledCommand
            app.add_typer(_member, rich_help_panel=_panel)
        else:
            app.command(rich_help_panel=_panel, cls=PanelledCommand)(_member)


def main() -> None:
    """Run the command line; see `run_to_exit` for exit codes."""
    prepare_process()
    run_to_exit(lambda: app(standalone_mode=False))
