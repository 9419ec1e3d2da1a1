"""What the command `run` is made of: machine facts, processes, one module a peer, and the table."""
