"""One decision for the whole model, from the text so far: the router, the running text, and where it listens."""
