"""Runs a command that hears Ctrl-C: a shell in the background ignores it, and cannot undo that for its children.

python3 .ci/with_interrupts.py COMMAND [ARGUMENT …]
"""

import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
