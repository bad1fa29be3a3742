"""Which version of Darktree this is."""

from importlib.metadata import version

VERSION = version("darktree")
