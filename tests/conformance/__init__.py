"""One case, two proxies: every case runs against real Envoy and against ours with the same configuration file."""
