"""A storage node: consensus core, log, engine, services and the loop that drives them."""
