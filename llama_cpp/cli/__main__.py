"""``python -m llama_cpp.cli``."""

from . import main

main()
