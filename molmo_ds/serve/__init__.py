"""HTTP: the protocol, the front that outlives the engine, the link between them."""
