"""Files written whole or not at all, errors in one line, locks, devices, progress.

May import: nothing of this project.
"""
