"""Files: atomic writing, checkpoints and what they hold, the run folder."""
