"""Conversations into prompts and answers into messages. Knows nothing of HTTP."""
