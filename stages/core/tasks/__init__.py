"""What a model is for: its loss and its score.

May import: process.
"""
