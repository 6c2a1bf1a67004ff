"""The store: tables, sessions, migrations, and the one module that moves a job's status."""
