"""`python -m intclip.cli`: the same as the `intclip` command."""

from intclip.cli.main import main

main()
