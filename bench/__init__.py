"""The same load against our proxy and its peers, in one run, on one machine: `python -m bench --help`."""
