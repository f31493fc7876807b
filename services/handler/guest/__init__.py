"""The guest's domain as the handler sees it: the port, its QMP implementation, and the agent inside the guest."""
