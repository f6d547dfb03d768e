"""Parts of the proxy's life that the supervisor puts together: output, connections, out-of-memory kills, zombies."""
