"""Layouts that are imported: one file each, listed in table.py."""
