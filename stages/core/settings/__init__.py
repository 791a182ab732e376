"""What params.yaml may say, defaults included.

May import: process.
"""
