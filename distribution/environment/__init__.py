"""Conda environments without conda: solved and installed with py-rattler, from an environment file or a lock."""

from .commands import add_commands

__all__ = ["add_commands"]
