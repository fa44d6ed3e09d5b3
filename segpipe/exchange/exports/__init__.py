"""Export formats: one file each, listed in table.py."""
