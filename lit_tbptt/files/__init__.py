"""Files: atomic writes, checkpoints and their schema, the run folder."""
