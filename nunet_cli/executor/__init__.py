"""Executors: what runs a job on the provider's machine, behind one small protocol."""
