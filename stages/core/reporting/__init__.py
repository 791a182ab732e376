"""Tables, pictures and the page, from the metrics files of other stages.

May import: process, settings.
"""
