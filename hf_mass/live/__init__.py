"""Live adaptation to one problem, step by step: what the command line and the Space share."""
