"""``python -m optimizer``, for torchrun and if the script is not on the PATH."""

from optimizer.cli import main

if __name__ == "__main__":
    main()
