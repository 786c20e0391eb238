"""Runs the `hopscope` command as `python -m hopscope`, where no script of that name is found."""

from hopscope.cli import main

if __name__ == "__main__":
    main()
