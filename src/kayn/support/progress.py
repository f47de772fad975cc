"""A progress bar that shows the log evidence, how good the weights are, and how long it takes at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[..., None]]:
    """Yields `show(done, log_evidence, worst)`; does nothing when not `shown`.

    `worst` is the effective share of the particles of the latent that has the fewest, None where it is not known. A fit
    may end long before its last step, so that the time left is an upper bound.
    """
    if not shown:
        yield lambda done, log_evidence, worst=None: None
        return
    from tqdm.auto import tqdm

    form = "{desc}: {n_fmt}/{total_fmt} steps{postfix} [{elapsed}, at most {remaining} left]"
    with tqdm(total=total, desc="fit", bar_format=form) as bar:

        def show(done: int, log_evidence: float, worst: float | None = None) -> None:
            told = "" if worst is None else f", worst ESS {100 * worst:.0f}% of particles"
            bar.set_postfix_str(f"log evidence {log_evidence:.2f}{told}", refresh=False)
            bar.update(done - bar.n)

        yield show
