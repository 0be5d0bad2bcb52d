"""`python -m dmlfast`, the same as the command `dmlfast`."""

import sys

from dmlfast.cli.main import main

sys.exit(main())
