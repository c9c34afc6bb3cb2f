"""The node's control API: HTTP on a Unix socket, and the client that the command line uses."""
