"""What a database holds, for a person: its transactions, its records, and whether all copies of it are sound."""
