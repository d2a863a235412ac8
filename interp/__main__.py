"""`python -m interp` is the command `interp`."""

import sys

from interp.cli.main import main

sys.exit(main())
