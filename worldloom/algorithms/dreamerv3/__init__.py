"""DreamerV3: settings, networks, losses, agent, and its public face."""
