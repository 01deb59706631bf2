"""`python -m templatekit`."""

from templatekit.cli import main

main()
