"""DreamerV3: behaviour learnt in imagination. ``spec`` imports no torch; ``agent`` does."""
