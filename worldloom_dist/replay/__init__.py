"""Replay as a service: a journaled shard, the coordinator that keeps the train ratio over all
shards, and the in-process replay.
"""
