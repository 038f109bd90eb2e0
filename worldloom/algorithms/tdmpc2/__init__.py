"""TD-MPC2: settings, networks, planner, losses, agent, and its public face."""
