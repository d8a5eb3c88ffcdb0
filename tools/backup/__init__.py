"""The database in one file, and a database out of it again. `docs/backup.md` tells how to use it."""
