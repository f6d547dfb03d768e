"""HTTP/1.1 as a client, on h11: `exchange` holds the protocol, `blocking` and `client` the sockets around it."""
