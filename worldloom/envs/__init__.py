"""Environments: one factory, one row contract, supervised processes."""
