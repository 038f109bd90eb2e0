"""One-step greedy control, an agent in a package of its own: settings in ``spec``, the rest in
``agent``, which alone needs torch.
"""
