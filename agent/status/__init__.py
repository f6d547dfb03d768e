"""What the agent answers on its status port (15020)."""
