"""DreamerV3's world model."""
