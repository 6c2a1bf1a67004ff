"""Adapter Studio: what a person or a program talks to."""

__version__ = "0.1.0"
