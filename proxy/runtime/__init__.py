"""The runtime: layers of keys and values that the admin interface may change while the proxy works (Envoy: Runtime)."""
