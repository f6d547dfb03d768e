"""The bootstrap that the proxy is started from, as plain JSON data: Envoy's messages are not needed to write them.

`document` puts it together; `node` is who the proxy says it is, `statistics`, `clusters` and `listeners` are the parts
that depend on settings, `template` applies a file of the operator's.
"""
