"""Replay as data: how rows travel (codec), where they lie (sequence_buffer), which are drawn
(selectors), how often (rate_limiter).

numpy only: a process that stores or forwards experience never imports torch.
"""
