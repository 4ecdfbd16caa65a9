"""The validation service: for platforms that ask over HTTP or a Unix socket whether a peer is good, on a machine that has no CA."""
