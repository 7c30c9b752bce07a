"""`python -m intclip` is the command `intclip`."""

from intclip.cli import main

if __name__ == "__main__":
    main()
