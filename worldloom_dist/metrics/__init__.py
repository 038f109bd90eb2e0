"""Numbers of a run: the table of their names, the hub that adds them up, and where they go."""
