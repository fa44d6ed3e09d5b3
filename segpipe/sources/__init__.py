"""What there is to label: the sources file, what the watch announces, and the queue of a bucket's events."""
