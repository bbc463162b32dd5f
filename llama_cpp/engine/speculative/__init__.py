"""Speculative decoding: drafts of tokens, which the model verifies several at once."""
