"""Fits, repairs, baselines, budgets of parameters and the search for windows.

May import: settings, architecture, forms, calibration.
"""
