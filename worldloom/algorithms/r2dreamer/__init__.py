"""R2-Dreamer: DreamerV3 without a decoder, behind ``worldloom.algorithms.registry``."""
