"""Models: families as data, opening, shape, the one view of a model, the canonical FFN, fewer layers.

May import: process, settings.
"""
