"""The merged metrics page: the agent's own, the proxy's and the application's as one document."""
