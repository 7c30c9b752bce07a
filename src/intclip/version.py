"""The installed version."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("intclip")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0+unknown"
