"""The supervisor of the sidecar: `pilot-agent`.

It starts the proxy, says when it is ready, and ends it without losing a request. It knows the proxy only through its
command line, its admin port and its exit status, so that any Envoy-compatible program can be the child.

One role a file. Reading: `cli` finds the command, `flags` parses, `options` holds the flag tables, `environment`,
`pod_files`, `proxy_config` (with its `proxy_config_schema`) and `custom_config` read what configures a pod, `effective`
makes one tree of it (`settings`), `explain` prints it; `cloud` is what is known of the platform. Starting: `launch`,
`child_command` and `bootstrap/` say what is started and from which file. Living: `child` starts and ends the process,
`admin` asks it by way of `http/`, `lifecycle/` watches it, `status/` answers on port 15020, metrics with the page that
`metrics/` makes, `drain` and `supervisor` are the life of the whole. `wait`, `request`, `version` and `completion` are
the small commands, `terminal` is where they print.
"""
