"""`python -m mvlm_np` is `mvlm`."""

import sys

from mvlm_np.cli import main

sys.exit(main())
