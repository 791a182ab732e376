"""Models: families as data, opening, shape, the canonical FFN, fewer layers.

May import: process, settings.
"""
