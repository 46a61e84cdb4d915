"""`python -m papsmear` is `papsmear`."""

import sys

from papsmear.cli import main

sys.exit(main())
