"""Explains config keys (`python -m sip.explain`).

reference       the keys, read from the dataclasses, as a page or as lines
"""
