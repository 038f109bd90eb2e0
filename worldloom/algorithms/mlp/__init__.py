"""The plain latent world model, ensembles of it, and planning in imagination."""
