"""`python -m lic.cli`: for torchrun, which starts modules."""

from lic.cli.app import main

main()
