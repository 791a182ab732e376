"""Images with labels: sources, and the table that keeps a split with its image processor.

May import: process, settings, text.
"""
