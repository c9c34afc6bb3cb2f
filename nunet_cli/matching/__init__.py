"""Matching: compare, accept, rank. Pure functions."""
