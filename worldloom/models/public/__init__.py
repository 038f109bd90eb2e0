"""Public faces of DreamerV3 and TD-MPC2 under their former names."""
