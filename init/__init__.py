"""Traffic capture for a pod: the `istio-iptables` program.

The way through: `flags` (command line and environment) -> `settings` (validated, frozen) -> `recipe` (rules as plain
data) -> `apply` (kernel, checked and rolled back) by one of `backends/`, or `cleanup`. It uses the standard library
only and imports nothing of `proxy` or `agent`: it runs in a small init container before them.
"""
