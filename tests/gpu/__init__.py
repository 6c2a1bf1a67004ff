"""`make gpu`: what only a card can settle, in eight minutes. Eleven parts, each in a process of its own with its own limit of time.

Every part has a reduced form that runs on a processor by the same code (`python -m tests.gpu --reduced`), which `make test` runs.
"""
