"""Before a launch: what a real recipe needs and costs, and a rehearsal of both stages with a tiny model."""
