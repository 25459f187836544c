"""`python -m raftstorage.node`."""

import os
import sys

# Before grpc is imported: what its core logs comes to us as exceptions, and would stand unformatted in our log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from raftstorage.node.main import main

sys.exit(main(sys.argv[1:]))
