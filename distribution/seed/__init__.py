"""A conda channel made of what a machine without conda channels has: its Python, its compiler, and wheels by hash."""

from .channel import seed, status, variants
from .commands import add_commands

__all__ = ["add_commands", "seed", "status", "variants"]
