"""Lets the tests in this folder import its two helpers, raft_cluster and raft_scripts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
