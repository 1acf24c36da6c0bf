"""Whatever answers a question: a network in this process, or a server."""
