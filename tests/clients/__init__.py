"""Clients that are generated from /api/openapi.json: `make clients`."""
