"""Models whose layers share or factor their weights: structure, checkpoint, counting, the way back to dense.

May import: process, architecture.
"""
