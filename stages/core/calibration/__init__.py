"""What a model does on calibration text: activations, moments, correlations, alignment.

May import: process, architecture.
"""
