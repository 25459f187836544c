"""`raftstorage drill`: real processes under load, harmed on purpose, and what they were trusted with compared."""
