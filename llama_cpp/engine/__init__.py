"""Turns tokens into tokens: the context, sampling, and the text that comes out. Knows nothing of chat."""
