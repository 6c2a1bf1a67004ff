"""Inference in a process of its own: one base in memory, many adapters, the OpenAI protocol on loopback."""
