"""Measuring answers: prompts, scores. Values in, values out; no database, no UI."""
