"""Model files: what is inside a GGUF file and whether the engine can load it."""
