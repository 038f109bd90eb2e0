"""Env workers, where their actions come from, and evaluation: plain classes that know only ports
and the library.
"""
