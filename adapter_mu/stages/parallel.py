"""Arms side by side, each in a process with its share of the cores: small models cannot use many threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from adapter_mu.data.prompts import expand
from adapter_mu.errors import UserError
from adapter_mu.methods import trains
from adapter_mu.progress import silence
from adapter_mu.recipe import Evaluate, PromptAttack, Recipe
from adapter_mu.stages.check import arms

POLL_SECONDS = 1.0
Arm = Callable[[Recipe, Path, str], None]


@contextmanager
def share_of_threads(workers: int) -> Iterator[None]:
    """Within, torch uses 1 / `workers` of the threads it would use: the same number in every process of a run."""
    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Arm, recipe: Recipe, folder: Path) -> None:
    """`work(recipe, folder, arm)` for every arm, at most `recipe.workers` at once; the first error is raised.

    The workers print headers, not bars; one bar here counts training steps and measured scores in the run's files.

    Raises:
        UserError: a worker was killed, or what the work itself raises.
    """
    names = list(arms(recipe))
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(
        min(recipe.workers, len(names)),
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(torch.get_num_threads(),),
    )
    try:
        pending = {pool.submit(work, recipe, folder, name) for name in names}
        _watch(pending, recipe, folder)
    except BrokenProcessPool:
        raise UserError(
            "One of the workers was killed, perhaps for lack of memory; the same command continues, and with workers=1"
            " it needs the least."
        ) from None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    """One share of the threads, no bars, and Ctrl-C left to the parent, which ends its workers in good order."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    silence()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _end_with_parent() -> None:
    """A parent that was killed ends nobody: left alone, its workers would write beside those of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _watch(pending: set[Future[None]], recipe: Recipe, folder: Path) -> None:
    every = arms(recipe)
    total = sum(_units(arm) for arm in every.values())
    with tqdm(total=total, desc="all arms", unit="", disable=None) as bar:
        while pending:
            done, pending = wait(pending, POLL_SECONDS, return_when="FIRST_EXCEPTION")
            for future in done:
                future.result()
            bar.n = min(total, sum(_done(arm, folder, name) for name, arm in every.items()))
            bar.refresh()


def _units(arm: Recipe) -> int:
    """Training steps, and one unit a picture that will be scored, so that the bar's estimate is fair."""
    steps = arm.train.steps if trains(arm.method.name, arm.meta) else 0
    if arm.evaluate is None:
        return steps
    cells = 1 + sum(len(attack.steps) * len(attack.seeds) for attack in arm.finetunes.values())
    images = _images(arm.evaluate)
    searched = sum(
        _search_units(attack, arm.evaluate) * (attack.prompts or images) * len(attack.seeds)
        for attack in arm.prompt_attacks.values()
    )
    return steps + cells * len(arm.evaluate.guidance) * images + searched


def _images(evaluate: Evaluate) -> int:
    return len(expand(evaluate.concept))


def _search_units(attack: PromptAttack, evaluate: Evaluate) -> int:
    """An adversarial prompt in pictures: a step of its search costs three predictions, a sampler's step two."""
    return max(1, 3 * attack.timesteps * attack.iterations // (2 * evaluate.steps))


def _done(arm: Recipe, folder: Path, name: str) -> int:
    own = folder / "arms" / name
    trained = _lines(folder / f"training_{name}.jsonl")
    if arm.evaluate is None:
        return trained
    searched = sum(
        _search_units(attack, arm.evaluate) * _lines(own / f"{label}_{seed}.jsonl")
        for label, attack in arm.prompt_attacks.items()
        for seed in attack.seeds
    )
    return trained + _lines(own / "scores.jsonl") * _images(arm.evaluate) + searched


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
