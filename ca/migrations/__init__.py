"""Schema revisions, run by ``ca.migrate``."""
