"""Data between nodes: kept by content id, asked for and given on connections of its own."""
