"""Tokenizers behind one protocol; each back end has its own module."""
