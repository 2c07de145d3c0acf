"""Secateur studies neural networks by cutting them down."""

__version__ = "0.1.0"
