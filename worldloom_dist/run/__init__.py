"""One run, from its command line to its summary: what both runtimes have in common."""
