"""The commands of the terminal, one file per group. Each parses, calls a service, and prints; heavy imports wait for the call."""
