"""Background work: what runs for minutes or hours, outside the web process."""
