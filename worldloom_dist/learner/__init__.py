"""Training: batches on their way in, updates, and weights and checkpoints on their way out."""
