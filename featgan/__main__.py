"""`python -m featgan` is the same as `featgan`."""

from featgan.cli.main import main

if __name__ == "__main__":
    main()
