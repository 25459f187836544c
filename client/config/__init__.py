"""A ClientStorage out of a configuration file (ZConfig) or a URI (zodburi)."""
