"""`python -m mmalign` is the command `mmalign`."""

from mmalign.cli import main

main()
