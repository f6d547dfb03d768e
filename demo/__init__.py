"""`make demo`: a small mesh on this machine, real traffic through the sidecar. Not part of the installed package."""
