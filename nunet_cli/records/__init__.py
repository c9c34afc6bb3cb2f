"""The ground floor: every document, message and record as a struct, the table that keeps it, and its machine."""
