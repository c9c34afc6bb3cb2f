"""The node: the actor that lives on a machine as long as the service runs."""
