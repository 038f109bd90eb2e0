"""The public faces of DreamerV3 and TD-MPC2: the very networks that the agents train, behind the
``WorldModel`` protocol.
"""
