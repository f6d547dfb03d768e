"""Traffic capture for a pod: the `istio-iptables` program.

The way through: `flags` (command line and environment) -> `settings` (validated, frozen) -> `plan` (rules as plain
data) -> `render` (iptables-restore text) -> `apply` (kernel, checked and rolled back) or `cleanup`. It uses the
standard library only and imports nothing of `proxy` or `agent`: it runs in a small init container before them.
"""
