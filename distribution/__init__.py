"""From pinned sources to what this repository ships: ``python -m distribution --help``.

Runs before anything is installed: Python 3.10 or newer and its standard library, nothing else.
"""
