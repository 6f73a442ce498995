"""Hugging Face language models that adapt themselves at test time, and meta-learn to do it better."""

__version__ = "0.1.0"
