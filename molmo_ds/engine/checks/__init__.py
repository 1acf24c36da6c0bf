"""What ranks must agree on, and what is raised where they do not."""
