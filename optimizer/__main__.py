"""``python -m optimizer``, for torchrun and for machines without the script on the PATH."""

from optimizer.cli import main

if __name__ == "__main__":
    main()
