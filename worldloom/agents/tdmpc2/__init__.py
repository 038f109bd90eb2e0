"""TD-MPC2: a latent world model, a policy prior and sampling-based planning."""
