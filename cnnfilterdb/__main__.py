"""Run the command line with ``python -m cnnfilterdb``."""

from cnnfilterdb.cli import main

if __name__ == "__main__":
    main()
