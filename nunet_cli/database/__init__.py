"""The store: TinyDB tables on SQLite, one writer, and the event log."""
