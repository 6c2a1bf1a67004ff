"""How each objective trains: torch, no database, no queue, no UI. Heavy imports happen inside functions."""
