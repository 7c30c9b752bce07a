"""The installed version."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("intclip")
except PackageNotFoundError:  # not installed
    __version__ = "0.0.0+unknown"
