"""`python -m segpipe` is `segpipe`."""

from __future__ import annotations

from segpipe.cli import main

if __name__ == "__main__":
    main()
