"""How segpipe is run: what is deployed, the local stack, and its alarms."""
