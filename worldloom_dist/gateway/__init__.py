"""The gateway: programs outside of the run act with its policy and feed its replay, over gRPC."""
