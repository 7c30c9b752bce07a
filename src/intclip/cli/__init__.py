"""The command line: one file per command group; heavy imports happen inside commands."""

from intclip.cli.main import main

__all__ = ["main"]
