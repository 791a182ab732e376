"""Models whose layers share or factor their weights: linear maps, structure, checkpoint, counting, back to dense.

May import: process, architecture.
"""
