"""Replay as a service: a journaled shard, the ledger that keeps the train ratio over all shards,
and the in-process door.
"""
