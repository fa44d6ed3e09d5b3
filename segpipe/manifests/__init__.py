"""The rows a labelling run leaves: their schema, how parts are committed and read, and the SQL views."""
