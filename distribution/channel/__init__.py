"""A conda channel in a folder: published whole or not at all, signed, and never changed in place."""

from .commands import add_commands

__all__ = ["add_commands"]
