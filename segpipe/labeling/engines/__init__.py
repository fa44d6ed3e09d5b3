"""Who works through a run's shards."""
