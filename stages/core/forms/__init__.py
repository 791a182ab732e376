"""Models whose layers share or factor their weights: classes that users open, structure, checkpoint, counting, dense.

May import: process, architecture.
"""
