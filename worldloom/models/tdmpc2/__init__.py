"""TD-MPC2's world model: encoder, latent dynamics, reward, termination, policy prior and critics."""
