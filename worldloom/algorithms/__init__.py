"""The algorithms, a package each, and what they share: the base of their public faces, saved
models, and the way from a name to a model or an agent.
"""
