"""Identity, secure channel, messages between nodes, discovery, topics and content-addressed transfer."""
