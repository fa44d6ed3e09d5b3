"""What the programs of the stack get in their environment from make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = """
show:
	@{python} -c 'from deployments import processes as p, stack; print(p.environment_without(*stack.SECRETS))'
"""


def test_no_secret_on_make_s_command_line_reaches_a_program(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE.format(python=sys.executable))
    given = ["DATABASE=postgresql://u:pass-word-1@h/d", "SEGPIPE_WEBHOOK_URL=https://hook/pass-word-2"]
    command = ["make", "--no-print-directory", "-f", tmp_path / "Makefile", *given, "SEEN=by-all", "show"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "by-all" in shown
    assert "pass-word" not in shown
