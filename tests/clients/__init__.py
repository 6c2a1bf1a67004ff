"""Clients of the studio in environments of their own, real ones and one that is generated from /api/openapi.json: `make clients`."""
