"""`nunet map`: a command for each item, on the machines of a market or on this one."""
