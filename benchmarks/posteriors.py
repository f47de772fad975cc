"""Everyday models with known posteriors, fitted with every default: how far off, said or not, and in how many seconds.

A directory holds `models.py` with `CASES`, a mapping from name to a case that has `model`, `load()` (keyword
arguments), `sites` ({site: array of parameter names}) and `reference()` ({parameter: {"mean": ..., "sd": ...}}), as
posteriordb's references have them; or scripts that say by their exit status whether an answer is right; or both. Each
case runs in a process of its own. Seconds are those of the import, the fit, the posterior, all scored moments and
1,000 joint draws: cold, and once more with another key in the same process (warm). With `--nuts` the same process then
runs NumPyro's NUTS, 4 chains of 500 + 500, where the model has no latents that it cannot sample.

Run: python -m benchmarks.posteriors DIRECTORY [--cases A,B] [--seeds 5] [--nuts] [--json FILE]
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

MARK = "RESULT "
RIGHT, SD_RANGE = 0.15, (0.85, 1.15)
"""How far a mean may be off, in sds of the reference, and how much narrower or wider an sd may be."""
WRONG = 0.3
"""How far off a mean must not be without a word."""
CHAINS, DRAWS = 4, 500


def cases_of(directory: Path) -> dict[str, Any]:
    """What `models.py` of a directory registers; nothing where there is none."""
    path = directory / "models.py"
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location("models_of_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.CASES


def compared(case: Any, mean: dict[str, Any], sd: dict[str, Any]) -> dict[str, Any]:
    """The worst error of a mean in sds, the least and largest ratio of sds, and where they are."""
    reference, errors, ratios = case.reference(), {}, {}
    for site, names in case.sites.items():
        found = (np.ravel(np.asarray(of[site], float)) for of in (mean, sd))
        for name, m, s in zip(np.ravel(names), *found, strict=True):
            if name is not None:  # a constant has no reference
                right = reference[str(name)]
                errors[str(name)] = float(np.nan_to_num(abs(m - right["mean"]) / right["sd"], nan=np.inf))
                ratios[str(name)] = float(np.nan_to_num(s / right["sd"], nan=np.inf))
    worst, low, high = max(errors, key=errors.__getitem__), *(f(ratios, key=ratios.__getitem__) for f in (min, max))
    good = errors[worst] < RIGHT and SD_RANGE[0] < ratios[low] and ratios[high] < SD_RANGE[1]
    return {
        "verdict": "right" if good else "off",
        "error": errors[worst],
        "error_at": worst,
        "ratio": [ratios[low], ratios[high]],
        "ratio_at": [low, high],
    }


def fitted(case: Any, data: dict[str, Any], key: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Means, sds and what else is told of one fit with every default."""
    import kayn

    fit = kayn.fit(case.model, kwargs=data, key=key, progress=False)
    posterior = fit.posterior()
    mean = {s: np.asarray(posterior.mean(s)) for s in case.sites}
    sd = {s: np.asarray(posterior.std(s)) for s in case.sites}
    posterior.sample(num_samples=1000)
    drawn = [a.latents[0] for a in posterior.problem.layout.axes if not a.enumerated and a.size > 1]
    share = [float(np.min(posterior.ess(n))) / len(posterior.weights(n)) for n in drawn if n in posterior.latent_names]
    told = {"steps": len(fit.log_evidence), "converged": bool(fit.converged), "ess": min(share, default=1.0)}
    return mean, sd, told


def kayn_on(case: Any, key: int, start: float) -> dict[str, Any]:
    """One case with one key, cold and warm."""
    import kayn

    data = case.load()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mean, sd, told = fitted(case, data, key)
        except kayn.KaynError as error:
            return {"verdict": "refused", "text": str(error), "cold": time.perf_counter() - start}
        cold = time.perf_counter() - start
    said = sorted({str(w.message) for w in caught if issubclass(w.category, kayn.KaynWarning)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        fitted(case, data, key + 1000)
    return {**compared(case, mean, sd), **told, "warnings": said, "cold": cold, "warm": time.perf_counter() - start}


def nuts_on(case: Any, key: int) -> dict[str, Any]:
    """NumPyro's NUTS on the same model; what it says where it cannot run."""
    import jax
    from numpyro.infer import MCMC, NUTS

    start = time.perf_counter()
    chains = MCMC(
        NUTS(case.model),
        num_warmup=DRAWS,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    try:
        chains.run(jax.random.key(key), **case.load())
        draws = {n: np.asarray(v) for n, v in chains.get_samples().items()}
        found = compared(case, *({s: f(draws[s], 0) for s in case.sites} for f in (np.mean, np.std)))
    except Exception as error:
        return {"nuts_text": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"nuts": time.perf_counter() - start, "nuts_error": found["error"], "nuts_ratio": found["ratio"]}


def in_process(arguments: list[str], limit: float) -> dict[str, Any]:
    """What a process of its own finds: its result, or how it ended."""
    start = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"verdict": "late", "text": f"no answer in {limit:.0f} s", "cold": limit}
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if found:
        return json.loads(found[-1][len(MARK) :])
    text = " ".join((done.stdout if done.returncode < 2 else done.stderr).split())[-160:]
    verdict = {0: "right", 1: "off"}.get(done.returncode, "crash") if arguments[0] != "-m" else "crash"
    return {"verdict": verdict, "text": text, "cold": time.perf_counter() - start}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    text = f"{row['case']:24.24s} {row['seed']:4d} {row['verdict']:8s}"
    if "error" not in row:
        return f"{text} {row['cold']:6.1f} s  {row['text'][:160]}"
    low, high = row["ratio"]
    text += f"{row['error']:6.2f} {low:5.2f} {high:5.2f} {row['ess']:5.2f} {row['steps']:5d}"
    text += f" {row['cold']:6.1f} {row['warm']:6.1f}"
    if "nuts" in row:
        text += f" {row['nuts']:6.1f} {row.get('nuts_error', np.nan):6.2f}"
    at = row["error_at"] if row["error"] >= RIGHT else " ".join(row["ratio_at"])
    text += f"  {at}" if row["verdict"] == "off" else ""
    return text + (f"  ! {row['warnings'][0][:70]}" if row["warnings"] else "")


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the requirements are about: right, silently wrong, without an answer, time beside NUTS."""
    count = {v: sum(r["verdict"] == v for r in rows) for v in ("right", "off", "refused", "late", "crash")}
    yield f"of {len(rows)}: " + ", ".join(f"{n} {v}" for v, n in count.items())
    silent = [r["case"] for r in rows if r.get("error", 0) > WRONG and not r["warnings"]]
    yield f"off by more than {WRONG} sd without a word: {', '.join(silent) or 'none'}"
    beside = [r for r in rows if r["verdict"] == "right" and r.get("nuts")]
    if beside:
        own, theirs = sum(r["cold"] for r in beside), sum(r["nuts"] for r in beside)
        yield f"cold seconds of the right ones: {own:.0f}, NUTS {theirs:.0f}: {own / theirs:.2f} of it"


@click.command()
@click.argument("directory", envvar="KAYN_CASES", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cases", default="", help="Names, separated by commas; by default all.")
@click.option("--seeds", default=1, show_default=True, help="Keys for every case.")
@click.option("--nuts", is_flag=True, help="Run NUTS beside it.")
@click.option("--limit", default=900.0, show_default=True, help="Seconds for every process.")
@click.option("--json", "json_path", default=None, help="Also write the table to this file.")
@click.option("--one", default=None, hidden=True, type=int, help="Key of the one case to run in this process.")
def main(
    directory: Path, cases: str, seeds: int, nuts: bool, limit: float, json_path: str | None, one: int | None
) -> None:
    start = time.perf_counter()
    known = cases_of(directory)
    if one is not None:
        found = kayn_on(known[cases], one, start)
        print(MARK + json.dumps({**found, **(nuts_on(known[cases], one) if nuts else {})}))
        return
    # what is imported is compiled once, by an installation, and not in the seconds of every process
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    scripts = {p.stem: p for p in sorted(directory.glob("p_*.py"))}
    rows = []
    print(f"{'case':24s} seed verdict  error    sd ratio   ESS steps   cold   warm" + "   NUTS  error" * nuts)
    for name in cases.split(",") if cases else [*known, *scripts]:
        flags = ["--cases", name, *(["--nuts"] if nuts else [])]
        for seed in range(seeds if name in known else 1):
            command = ["-m", "benchmarks.posteriors", str(directory), *flags, "--one", str(seed)]
            row = in_process(command if name in known else [str(scripts[name])], limit)
            rows.append({"case": name, "seed": seed, **row})
            print(line(rows[-1]), flush=True)
    for told in summary(rows):
        print(told)
    if json_path:
        with open(json_path, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
