"""`segpipe doctor`: can a run work here, and if not, what to do about it."""
