"""`python -m unipercept`."""

from unipercept.cli import main

if __name__ == "__main__":
    main()
