"""Data: files to rows, rows to examples, examples to tokens. Knows no database and no page."""
