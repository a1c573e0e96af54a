"""`python -m a2s_repro` is the command line `a2s`."""

from a2s_repro.commands import main

if __name__ == "__main__":
    main()
