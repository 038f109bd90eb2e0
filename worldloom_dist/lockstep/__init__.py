"""All roles of a run in one process, in lock-step, without Ray."""
