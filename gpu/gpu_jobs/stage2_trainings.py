"""Trainings side by side on one GPU: begun in order, looked at, and ended by the clock."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ssl_runs
from gpu_jobs.errors import FAILED_CHECK, NO_GPU, NOT_FINITE, OUT_OF_TIME, TOO_SLOW, JobError
from gpu_jobs.jobs import rehearsal
from gpu_jobs.stage2_servers import Servers
from gpu_jobs.stage2_train import INPUT, PROGRESS
from ssl_processes import Process, RunError
from ssl_runs import Comparison
from ssl_scores import scores_file
from ssl_tasks import Facts, Run
from vessa_client import files

LOG = "run.log"
SHOWN = 2000
# Before the deadline: when trainings stop, and when what still runs is ended, so that the states
# can be packed; seconds in which beginning one is worth it.
STOP, END, LEAST = 35.0, 15.0, 60.0
POLL = 0.2
# Seconds that all runs wait for the servers, so that they begin in their order.
SERVERS_WITHIN = 60.0
# How often trainings are looked at from their first updates on, and by when there must be some.
EVERY, NONE_YET = 30.0, 300.0
# Seconds that a whole run may take, many stretches; percent of the time that the GPU must be busy.
LONGEST, LEAST_BUSY = 7200.0, 3.0
# Trainings that may fail before one has come to its end.
MOST_FAILURES = 3
# Seconds of scoring a run, with regions or without, as long as none was scored: a guess.
SCORING = {True: 30.0, False: 80.0}


@dataclass
class Training:
    """A process that trains and scores a run.

    Attributes:
        seen: its progress when it was looked at last.
        rate: updates a second between the last two looks.
        cold: whether these were slow, because slices were new to VESSA.
        shed: whether it was ended so that others come to their ends.
    """

    run: Run
    folder: Path
    process: Process
    start: Facts
    starts: list[Facts]
    began: float = field(default_factory=time.time)
    seen: Facts = field(default_factory=dict)
    rate: float | None = None
    cold: bool = False
    shed: bool = False

    @property
    def progress(self) -> Facts:
        """What it noted last; nothing before the first update of this process."""
        file = self.folder / PROGRESS
        found: Facts = json.loads(file.read_text()) if file.is_file() else {}
        return found if found.get("time", 0.0) >= self.began else {}

    @property
    def step(self) -> int:
        """Updates that were made."""
        return int(self.progress.get("step", 0))

    @property
    def with_regions(self) -> bool:
        """Whether its student sees regions: that is scored in fewer views."""
        return bool(self.run.config["regions"])

    def seconds_of(self, updates: int) -> float | None:
        """How long so many updates take, as far as that is known."""
        return updates / self.rate if self.rate and not self.cold else None

    def look(self) -> None:
        """Measure how fast it is."""
        found, before = self.progress, self.seen
        if found and before and found["time"] > before["time"]:
            self.rate = (found["step"] - before["step"]) / (found["time"] - before["time"])
            self.cold = before["cold"]
        self.seen = found or before


class Trainings:
    """All of a job.

    Attributes:
        waiting: in their order.
        slots: how many may run side by side.
        done: facts of those that came to their end.
        failed: those that failed, with the reason.
        speed: what the looks saw, by run.
        scoring: seconds of scoring a run that were measured, with regions or without.
    """

    def __init__(
        self,
        comparison: Comparison,
        runs: list[Run],
        servers: Servers,
        deadline: float,
        options: list[str],
        complete: Callable[[Facts], Facts],
    ) -> None:
        self.comparison, self.waiting, self.servers = comparison, list(runs), servers
        self.deadline, self.options, self.complete = deadline, options, complete
        self.slots = comparison.workers
        self.running: list[Training] = []
        self.done: list[Facts] = []
        self.failed: dict[str, str] = {}
        self.speed: dict[str, Facts] = {}
        self.scoring: dict[bool, float] = {}
        self.code = 0
        self._broken = 0  # trainings that failed
        self._began = time.time()
        self._first_look = self._looked = 0.0
        self._checked = rehearsal()

    def run(self, changed: Callable[[], None], busy: Callable[[float], float | None]) -> None:
        """Until all are done, or time is up.

        Args:
            changed: called after each that ended.
            busy: percent of the time since a moment in which the GPU was.

        Raises:
            JobError: it is not worth going on.
        """
        while self.running or self.waiting:
            if time.time() > self.deadline - END:
                break
            if self._reap() or self._begin():
                changed()
            if not self.running and self._late(LEAST):
                break
            if self._broken >= MOST_FAILURES and not self.done:
                raise JobError(f"{len(self.failed)} runs failed, none did not", self.code)
            self._look(busy)
            time.sleep(POLL)

    def _late(self, seconds: float) -> bool:
        return time.time() > self.deadline - STOP - seconds

    def _begin(self) -> bool:
        """Begin what there are slots for; returns whether a run failed at that."""
        before = len(self.failed)
        if self.servers.starting and time.time() - self._began < SERVERS_WITHIN:
            return False
        while len(self.running) < self.slots and not self._late(LEAST):
            run, address = self._next()
            if run is None:
                break
            self.waiting.remove(run)
            self.running.append(self._started(run, address))
        return len(self.failed) > before

    def _next(self) -> tuple[Run | None, str | None]:
        """The first run whose server is there, where it needs one."""
        for run in list(self.waiting):
            if not run.server:
                return run, None
            try:
                address = self.servers.address(run.subset)
            except RunError as error:
                self.waiting.remove(run)
                self._fail(run, str(error), FAILED_CHECK)
                continue
            if address is not None:
                return run, address
        return None, None

    def _started(self, run: Run, address: str | None) -> Training:
        folder = self.comparison.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        # YAML has all of JSON.
        files.write_text(folder / INPUT, json.dumps(run.config))
        file = folder / ssl_runs.STARTS
        starts: list[Facts] = json.loads(file.read_text()) if file.is_file() else []
        vessa = self.comparison.vessa if run.server else None
        # CPU seconds of trainer and server mean nothing beside a GPU that many share.
        start: Facts = {"vessa": vessa, "seconds": None, "training": None, "server": None}
        starts.append(start)
        files.write_text(file, json.dumps(starts))
        command = ["-m", "gpu_jobs.stage2_train", str(folder), *self.options]
        command += ["--stop", str(self.deadline - STOP)]
        if address is not None:
            command += ["--server", address]
        return Training(run, folder, Process(folder / LOG, *command), start, starts)

    def _reap(self) -> bool:
        """Take in what has ended."""
        ended = [training for training in self.running if training.process.ended]
        for training in ended:
            self.running.remove(training)
            self._end(training, training.process.wait())
        return bool(ended)

    def _end(self, training: Training, code: int) -> None:
        training.start["seconds"] = time.time() - training.began
        files.write_text(training.folder / ssl_runs.STARTS, json.dumps(training.starts))
        run = training.run
        if code == 0:
            try:
                self.done.append(self.complete(self._facts(training)))
            except (ValueError, OSError) as error:
                self._fail(run, f"its results cannot be read: {error!r}", FAILED_CHECK)
            else:
                self._note_scoring(training)
                print(f"  {run.name}: done after {training.start['seconds']:.0f} s", flush=True)
        elif training.shed or code == OUT_OF_TIME:
            self.waiting.insert(0, run)
        else:
            self._broken += 1
            log = (training.folder / LOG).read_text()[-SHOWN:]
            self._fail(run, log, NOT_FINITE if code == NOT_FINITE else FAILED_CHECK)

    def _note_scoring(self, training: Training) -> None:
        """How long its scoring took, from its last update on; half of it may be from before."""
        seconds = time.time() - float(training.progress["time"])
        kind = training.with_regions
        self.scoring[kind] = max(seconds, self.scoring.get(kind, 0.0))

    def _left(self, training: Training) -> float | None:
        """Seconds to the end of a run, its scores included, as far as that is known."""
        updates = training.seconds_of(training.run.steps - training.step)
        kind = training.with_regions
        return None if updates is None else updates + self.scoring.get(kind, SCORING[kind])

    def _facts(self, training: Training) -> Facts:
        folder = training.folder
        facts = ssl_runs.facts_of(self.comparison, training.run, folder, training.starts)
        found = {split: scores_file(folder, split) for split in ("val", "test")}
        scores = {n: json.loads(file.read_text()) for n, file in found.items() if file.is_file()}
        return {**facts, "scores": scores}

    def _fail(self, run: Run, reason: str, code: int) -> None:
        self.failed[run.name], self.code = reason, code
        print(f"  {run.name}: failed\n{reason}", flush=True)

    def _look(self, busy: Callable[[float], float | None]) -> None:
        """Every now and then: how fast all are, and whether they come to their ends."""
        now = time.time()
        begun = [training for training in self.running if training.progress]
        if not self._looked:
            if begun:
                self._first_look = self._looked = now
                for training in begun:
                    training.look()
            elif now - self._began > NONE_YET and not self.done and not rehearsal():
                raise JobError(f"no update after {NONE_YET:.0f} s: {self._tails()}", TOO_SLOW)
            return
        if now - self._looked < EVERY:
            return
        self._looked = now
        for training in begun:
            training.look()
            self._note(training)
        percent = busy(self._first_look)
        print(f"After {now - self._began:.0f} s: GPU busy {percent} %", flush=True)
        for training in begun:
            print(f"  {training.run.name}: {_line(self.speed[training.run.name])}", flush=True)
        if not self._checked:
            self._checked = self._check(begun, percent)
        if not rehearsal():
            self._shed(begun)

    def _note(self, training: Training) -> None:
        found = {name: value for name, value in training.progress.items() if name != "time"}
        left = self._left(training)
        rates = {
            "updates_per_second": None if training.rate is None else round(training.rate, 2),
            "seconds_left": None if left is None else round(left),
            "side_by_side": len(self.running),
        }
        self.speed[training.run.name] = found | rates

    def _check(self, begun: list[Training], busy: float | None) -> bool:
        """Whether all of it runs where and as fast as it should; returns whether that is known.

        It is not while one of them starts, or compiles its networks: the GPU is idle then.

        Raises:
            JobError: it does not.
        """
        elsewhere = {training.progress["device"] for training in begun}
        if any(not device.startswith("cuda") for device in elsewhere):
            raise JobError(f"trainings are on {', '.join(sorted(elsewhere))}", NO_GPU)
        if not begun or any(training.rate is None for training in begun):
            return False
        found = [training.seconds_of(training.run.steps) for training in begun]
        whole = [seconds for seconds in found if seconds is not None]
        if whole and min(whole) > LONGEST:
            raise JobError(
                f"a run takes {min(whole):.0f} s, expected {LONGEST:.0f} at most", TOO_SLOW
            )
        if busy is not None and busy < LEAST_BUSY:
            raise JobError(
                f"the GPU is busy {busy} % of the time: training runs elsewhere", TOO_SLOW
            )
        return bool(whole)

    def _shed(self, begun: list[Training]) -> None:
        """Where no run would come to its end, let the others wait, as far as that helps one.

        They share one GPU: half of them are about twice as fast.
        """
        left = self.deadline - STOP - time.time()
        needed = {training.run.name: self._left(training) for training in begun}
        known = [seconds for seconds in needed.values() if seconds is not None]
        if len(begun) < 2 or len(known) < len(self.running):
            return
        if min(known) <= left or min(known) / len(begun) > left:
            return
        begun.sort(key=lambda training: needed[training.run.name] or 0.0)
        self.slots = max(1, len(begun) // 2)
        for training in begun[self.slots :]:
            # Its folder has a state: it goes on from there.
            training.shed = True
            training.process.end(signal.SIGKILL)
        print(f"  too slow side by side: from now on {self.slots} at once", flush=True)

    def _tails(self) -> str:
        return "; ".join(
            f"{training.run.name}: {(training.folder / LOG).read_text()[-300:].strip()}"
            for training in self.running
        )


def _line(found: Facts) -> str:
    return (
        f"update {found['step']}, {found['updates_per_second']} a second, "
        f"loss {found['loss']:.3f}, {found['seconds_left']} s left, {found['device']}, "
        f"{found['memory_mib']} MiB, {found['threads']} threads"
    )


def kill_all() -> None:
    """End every training and server at once."""
    for process in list(Process.started):
        process.end(signal.SIGKILL)
