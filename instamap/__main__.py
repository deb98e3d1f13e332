"""`python -m instamap`: the command line, as `torchrun -m instamap` starts it in every process."""

from instamap.cli import main

if __name__ == "__main__":
    main()
