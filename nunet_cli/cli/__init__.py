"""The command line: parse, call the node's API, render. One module per command group, no logic of the market."""
