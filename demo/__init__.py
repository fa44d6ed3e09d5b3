"""Drawn street scenes and `make demo`; not part of the wheel."""
