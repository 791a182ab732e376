"""What a model is trained for, scored on and timed at: one interface, and its implementations.

May import: process, settings, text, images, architecture.
"""
