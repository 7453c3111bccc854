"""Answers many requests with one model, a slice of work at a time.

A slice is a block of the vision tower for one picture, or one pass through the decoder, in which every answer
gets its next token and a piece of the prompts is read. Between any two slices requests come, leave and are
given up, so none of these waits longer than a slice takes.

    queued -> (a place is free) -> pictures encoded -> prompt read -> answered
               4 of them            one at a time        together, in a batch

There are neither threads nor connections here: whoever owns the engine calls `step`. `worker` has the thread.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Lock
from time import monotonic

import numpy as np

from mvlm_np import memory, prefix
from mvlm_np.answer import ends_answer
from mvlm_np.batch import Batch, Member
from mvlm_np.errors import GenerationError, MemoryNeeded, UserError
from mvlm_np.inputs.conversation import stop_string
from mvlm_np.inputs.image import preprocess
from mvlm_np.look.looking import looked_at
from mvlm_np.model import MobileVLM
from mvlm_np.serve.caches import PICTURES, RESERVE, Pictures, Prefixes, digest
from mvlm_np.serve.job import Job, Taken
from mvlm_np.serve.prompts import prompt_of
from mvlm_np.serve.requests import (
    Busy,
    Event,
    Failed,
    Finished,
    Listener,
    NotRead,
    Request,
    Status,
    Stopping,
    WaitedTooLong,
)

LOG = logging.getLogger(__name__)

PLACES = 4  # requests that are worked on at a time: the rows of a tile of the kernels
QUEUE = 8  # requests that wait
WAIT = 120.0  # seconds that a request waits for its place
SLOW = 30.0  # seconds that an answer waits for somebody to read it
UNREAD = 64  # events that may lie unread before an answer pauses
PIECE = 64  # positions of prompts that a slice reads; longer pieces are read no faster, and nobody can leave


class Engine:
    """The requests that are answered and those that wait, and the caches that they share.

    conv_mode  the prompt template
    places     how many requests are worked on at a time
    queue      how many wait besides
    wait       seconds after which one that still waits is given up
    slow       seconds after which an answer that nobody reads is given up
    pictures   bytes of the cache of pictures
    prefixes   bytes of the cache of prompts' beginnings; None: 200 MB, at most a tenth of what is free
    clock      tells the time in seconds

    First comes who came first. But nobody has more than half of the places while somebody else waits; and
    requests of low priority wait until no other does, or until they have waited for half of what they may.

    One thread at a time may call `start` and `step`; `submit`, `cancel`, `stop` and `status` any thread.
    """

    def __init__(
        self,
        model: MobileVLM,
        *,
        conv_mode: str = "v1",
        places: int = PLACES,
        queue: int = QUEUE,
        wait: float = WAIT,
        slow: float = SLOW,
        pictures: int = PICTURES,
        prefixes: int | None = None,
        clock: Callable[[], float] = monotonic,
    ):
        self.model, self.tokenizer, self.conv_mode = model, model.tokenizer, conv_mode
        self.places, self.queue, self.wait, self.slow, self.clock = places, queue, wait, slow, clock
        self._stop = stop_string(conv_mode)
        self._ended = ends_answer(self.tokenizer, self._stop, model.config.decoder.end_tokens)
        self._pictures, self._prefixes = Pictures(pictures), Prefixes(prefixes)
        self._batch, self._position_bytes = Batch(), model.session().cache.bytes_per_position
        self._queued, self._placed = list[Job](), list[Job]()
        self._lock = Lock()  # of the two lists and the counts
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._stopping, self._beat, self._pace = False, clock(), 1.0

    def start(self) -> None:
        """Reads what all prompts begin with, which has the kernels ready too."""
        session, stored = self.model.session(), self.model.prefix
        if stored is not None and stored.template == self.conv_mode:
            stored.begin(session)
        else:
            prefix.read_into(session, self.conv_mode, self.tokenizer, self.model.vision is not None)
        self._prefixes.pin(session)

    # ------------------------------------------------------------ from any thread

    def submit(self, request: Request, listener: Listener, unread: Callable[[], int] = lambda: 0) -> Job:
        """Takes a request. Its listener gets events from the thread that steps, and must not block.

        unread  how many events lie unread with the listener. From 64 on the answer pauses until half of them
                have been read

        A request that cannot be answered is a UserError (PromptError, PromptTooLong, ...), and so is one for
        which there is no room (Busy) or no time (Stopping). This prepares pictures, which may take a moment.
        """
        with self._lock:
            self._room()
        prompt = prompt_of(request, self.conv_mode, self.tokenizer, self.model.config)
        if request.schema is not None and request.stop:
            fix = "leave it out: the answer ends where it fits the schema"
            raise GenerationError("stop", "cannot stand beside a schema", fix=fix)
        constraint = self.model.constraint(request.schema, prompt.settings)
        if prompt.pictures:
            self.model.require_vision()
        pictures, pixels, tokens = [digest(picture, request.owner) for picture in prompt.pictures], {}, {}
        for name, picture in zip(pictures, prompt.pictures, strict=True):
            if (known := self._pictures.get(name)) is not None:
                tokens[name] = known
            elif name not in pixels:
                pixels[name] = preprocess(picture, self.model.config.image)
        # A photo is 36 MB, and what is kept of it 1.4: those of all who wait would take gigabytes.
        request, prompt = replace(request, messages=()), replace(prompt, pictures=())
        job = Job(request, prompt, listener, unread, pictures, pixels, tokens, self.clock(), constraint)
        with self._lock:
            job.ahead = self._room()
            self._queued.append(job)
            self._counts["requests"] += 1
        return job

    def cancel(self, job: Job) -> None:
        """Gives a request up, wherever it is. After the current slice its listener gets nothing more."""
        job.cancelled = True

    def stop(self) -> None:
        """Ends all requests with `Failed(Stopping())`, in the next step. No more are taken."""
        self._stopping = True

    def status(self) -> Status:
        """What the engine is at."""
        with self._lock:
            return Status(
                running=len(self._placed),
                queued=len(self._queued),
                idle_seconds=max(0.0, self.clock() - self._beat),
                counts=dict(self._counts),
                seconds=dict(self._seconds),
                pictures=self._pictures.status,
                prefixes=self._prefixes.status,
            )

    @property
    def is_busy(self) -> bool:
        """Whether there are requests."""
        return bool(self._queued or self._placed)

    @property
    def ended(self) -> int:
        """Requests that have been taken, and have come to an end of some kind."""
        return sum(self._counts[how] for how in ("finished", "failed", "cancelled"))

    @property
    def stopped(self) -> bool:
        """Whether all has ended, and nothing more will come."""
        with self._lock:
            return self._stopping and not self.is_busy

    def _room(self) -> int:
        """How many requests there are; Stopping or Busy, if no other one can be taken. Wants the lock."""
        if self._stopping:
            raise Stopping
        ahead = len(self._queued) + len(self._placed)
        if ahead >= self.places + self.queue:
            self._counts["refused"] += 1
            raise Busy(ahead, seconds=self._pace * (1 + len(self._queued) / self.places))
        return ahead

    # ------------------------------------------------------------ a slice

    def step(self) -> bool:
        """Does a slice of work or two: a block of the tower, and a pass through the decoder.

        False: there was nothing to do. What goes wrong ends the request that it belongs to.
        """
        try:
            self._settle()
            self._admit()
            worked = self._encode()
            self._settle()
            return self._decode() or worked
        except Exception as error:  # a bug; to go on as if nothing had been might meet it for ever
            for job in [*self._placed, *self._queued]:
                self._fail(job, error)
            return True

    def _settle(self) -> None:
        """Lets those go who leave, waited too long, or are not read."""
        self._beat = now = self.clock()
        for job in [*self._queued, *self._placed]:
            if job.cancelled:
                self._leave(job, "cancelled")
            elif self._stopping:
                self._fail(job, Stopping())
            elif now - job.came > self.wait and job in self._queued:
                self._fail(job, WaitedTooLong(now - job.came))
            elif job.member is not None:
                self._pause(job, job.member, now)

    def _pause(self, job: Job, member: Member, now: float) -> None:
        """Has an answer wait for its reader, and go on when that has read."""
        unread = job.unread()
        if job.paused is None and unread >= UNREAD:
            job.paused = now
            self._batch.leave(member)
        elif job.paused is not None and unread <= UNREAD // 2:
            job.paused = None
            self._batch.back(member)
        elif job.paused is not None and now - job.paused > self.slow:
            self._fail(job, NotRead(now - job.paused))

    def _admit(self) -> None:
        """Gives free places to those who wait."""
        while len(self._placed) < self.places and (job := self._next()) is not None:
            if not self._has_memory(job):
                return
            with self._lock:
                self._queued.remove(job)
                self._placed.append(job)

    def _next(self) -> Job | None:
        """Whose turn it is."""
        late = self._beat - self.wait / 2  # came before that: it has let others go first for long enough
        waiting = [job for job in self._queued if not job.request.low_priority or job.came < late]
        waiting = waiting or self._queued
        if len({job.request.client for job in waiting}) > 1:
            places = Counter(job.request.client for job in self._placed)
            most = max(1, self.places // 2)
            waiting = [job for job in waiting if places[job.request.client] < most]
        return next(iter(waiting), None)

    def _has_memory(self, job: Job) -> bool:
        """Whether there is memory for a request's keys and values; what is cached makes room for them.

        If there is not, it waits until another one has ended. If there is no other, it fails.
        """
        free = memory.available()
        if free is None:
            return True
        needed = job.positions * self._position_bytes + RESERVE
        promised = sum(other.positions - other.filled for other in self._placed) * self._position_bytes
        short = needed + promised - free
        if short > 0:
            cached = self._prefixes.status.bytes
            self._prefixes.shrink(max(0, cached - short))
            short -= cached - self._prefixes.status.bytes
        if short > 0 and not self._placed:
            found = f"the request takes {memory.text(needed)}, and {memory.text(free)} are free"
            self._fail(job, MemoryNeeded("memory", found, fix="shorten it, or allow a shorter answer"))
        return short <= 0

    def _encode(self) -> bool:
        """Encodes a little for the first who needs it; those whose pictures are all tokens join the batch."""
        worked = False
        for job in self._placed[:]:
            if job.member is not None or (worked and self._missing(job)):
                continue
            try:
                job.started = job.started or self.clock()
                job.encoding = job.encoding or self._encoding(job)
                if next(job.encoding, False):
                    worked = True
                else:
                    self._join(job)
            except Exception as error:
                self._fail(job, error)
        return worked

    def _missing(self, job: Job) -> bool:
        """Whether a picture is still to be encoded."""
        return any(name not in job.tokens and self._pictures.peek(name) is None for name in job.pictures)

    def _encoding(self, job: Job) -> Iterator[bool]:
        """Has all tokens of a job's pictures, after as many slices as it yields."""
        for name in job.pictures:
            if name in job.tokens:
                continue
            tokens = self._pictures.peek(name)
            if tokens is None:
                for computed in self.model.encoding(job.pixels[name]):
                    tokens = computed
                    yield True
                assert tokens is not None
                if not np.isfinite(tokens).all():
                    raise GenerationError(
                        "picture", "the model computed NaN or infinity", fix="mvlm inspect it"
                    )
                self._pictures.put(name, tokens)
            job.tokens[name] = tokens

    def _join(self, job: Job) -> None:
        """Puts a prompt whose pictures are tokens into the batch."""
        prompt = job.prompt
        x, at = self.model.embed(prompt.ids, [job.tokens[name] for name in job.pictures])
        names = np.array([0, *(self._pictures.name(name) for name in job.pictures)])
        at = np.where(at < 0, -names[np.maximum(-at, 0)], at)
        if job.pixels and not any(map(self._missing, [*self._queued, *self._placed])):
            self.model.give_back()
        session = self.model.session()
        session.cache.reserve(job.positions)
        job.let_go()
        job.cached, job.again = self._prefixes.begin(session, at, job.request.owner)
        job.reply = Taken(self.tokenizer, job, self._ended, self._stop)
        job.joined, job.last = self.clock(), x[-1:].copy()
        job.member = self._batch.join(
            session, x, at, job.reply, prompt.settings.max_new_tokens, self.tokenizer.vocab_size
        )
        self._prefixes.use(session, prompt.length, job.request.owner)
        if job.reply.ended:  # as it may have no tokens
            self._finish(job)

    def _decode(self) -> bool:
        """One pass through the decoder, for all who are in the batch."""
        members = self._batch.members
        if not members:
            return False
        jobs = {job.member: job for job in self._placed if job.member is not None}
        for member in self._batch.step(PIECE):
            job = jobs[member]
            try:
                self._went_on(job)
            except Exception as error:
                self._fail(job, error)
        return True

    def _went_on(self, job: Job) -> None:
        """Hands over what an answer has more than before."""
        assert job.member and job.reply
        if job.member.error is not None:
            raise job.member.error
        if piece := job.reply.piece():
            self._tell(job, piece)
        if not job.first:
            job.first = self.clock()
            if job.request.look:
                job.looked = looked_at(job.member.session, job.last)
        if job.reply.ended:
            self._finish(job)

    # ------------------------------------------------------------ the end of a request

    def _finish(self, job: Job) -> None:
        assert job.reply
        now = self.clock()
        first = job.first or now
        seconds = {
            "queued": job.started - job.came,
            "encode": job.joined - job.started,
            "prefill": first - job.joined,
            "decode": now - first,
        }
        tokens = {
            "prompt_tokens": job.prompt.length,
            "cached_tokens": job.cached,
            "completion_tokens": len(job.reply.tokens),
        }
        self._leave(job, "finished")
        with self._lock:
            self._counts.update(tokens)
            for name, spent in seconds.items():
                self._seconds[name] += spent
        self._pace += 0.2 * (now - job.started - self._pace)
        self._tell(job, Finished(job.reply.reason, **tokens, seconds=seconds, looked=job.looked))

    def _leave(self, job: Job, how: str) -> None:
        """Takes a request out, wherever it is. What it has read is kept, if it may be of use again."""
        with self._lock:
            for jobs in (self._queued, self._placed):
                if job in jobs:
                    jobs.remove(job)
            self._counts[how] += 1
        job.let_go()
        if job.member is not None:
            self._batch.leave(job.member)
            self._prefixes.free(job.member.session)
            if how != "failed":
                once = not job.again and job.prompt.turns == 1
                self._prefixes.keep(job.member.session, once, job.request.owner)
            job.member = None

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, UserError):
            LOG.error("a request failed", exc_info=error)
        self._leave(job, "failed")
        self._tell(job, Failed(error))

    def _tell(self, job: Job, event: Event) -> None:
        """A listener that cannot take its event is gone."""
        try:
            job.listener(event)
        except Exception:
            LOG.exception("a request's listener failed")
            job.cancelled = True
