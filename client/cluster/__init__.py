"""Who is leader, which replica to read, retry and failover."""
