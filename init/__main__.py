"""`python -m init` is `istio-iptables`."""

import sys

from init.cli import main

sys.exit(main())
