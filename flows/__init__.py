"""Prefect flows: each a handful of coarse tasks that call segpipe; the only place that knows Prefect."""
