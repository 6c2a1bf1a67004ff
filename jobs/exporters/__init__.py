"""Exports: what is written of an adapter, and the proof that the written file behaves like it."""
