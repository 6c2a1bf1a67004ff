"""Where the starter model and the demo datasets come from: seeded scripts that anyone can run again."""
