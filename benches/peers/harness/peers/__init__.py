"""One module a peer: what it needs, how it is started, and under which conditions it runs."""
