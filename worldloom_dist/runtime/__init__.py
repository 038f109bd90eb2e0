"""The roles of a run on Ray: processes, how they are placed, watched, restarted and ended."""
