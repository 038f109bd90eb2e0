"""worldloom_dist."""
