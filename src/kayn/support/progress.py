"""A progress bar that shows the log evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """Yields `show(done, log_evidence)`; does nothing when not `shown`."""
    if not shown:
        yield lambda done, log_evidence: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="fit") as bar:

        def show(done: int, log_evidence: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"log evidence {log_evidence:.2f}")

        yield show
