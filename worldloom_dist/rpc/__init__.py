"""Calls between the processes of a run: over Ray, and over own sockets where calls are many."""
