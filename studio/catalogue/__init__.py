"""What can be used here: model folders, read without loading them, and the machine they would run on."""
