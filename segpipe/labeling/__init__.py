"""From a bucket to masks and manifest rows: inventory, plan, claim, shards, run."""
