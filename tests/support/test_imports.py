"""What `import kayn` does not import, since every user waits for it."""

import subprocess
import sys


def test_what_few_questions_need_is_imported_when_they_are_asked():
    code = "import kayn, sys; print(*{'scipy.stats', 'pandas', 'xarray', 'matplotlib', 'arviz_stats'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
