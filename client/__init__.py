"""Everything an application imports."""
