"""`python -m lit_tbptt`: the command line."""

from lit_tbptt.cli import main

if __name__ == "__main__":
    main()
