"""The command line: one file a command group; heavy imports happen inside commands."""

from intclip.cli.main import main

__all__ = ["main"]
