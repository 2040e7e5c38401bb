# SPDX-License-Identifier: Apache-2.0
"""What the cluster tests share: daemons as child processes over one root, killed and paused by pid, and everything gone at the end.

Every daemon gets SIGKILL from the kernel when the test dies (PR_SET_PDEATHSIG), its workers follow it; network namespaces have no names and end
with the processes that hold them. Files lie in the workspace of tests/crash/harness.py. Standard library only.
"""
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

HOLDFASTD = os.path.join(h.BIN, "holdfastd")
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, CLONE_NEWNET, CLONE_NEWNS = 1, 0x40000000, 0x00020000
MS_PRIVATE_ALL = 0x4000 | (1 << 18)
DEADLINE = int(os.environ.get("HOLDFAST_DEADLINE", "240"))  # seconds that anything may take on a busy machine; nothing here measures speed


def dies_with_us(ns_pid=None, cgroup=None, hidden=None):
    """For preexec_fn: the child is killed when this process dies; it may enter a network namespace or a cgroup first, or not see a directory."""
    parent = os.getpid()

    def enter():
        if hidden is not None:
            if LIBC.unshare(CLONE_NEWNS) != 0 or LIBC.mount(b"none", b"/", None, MS_PRIVATE_ALL, None) != 0:
                os._exit(126)
            if LIBC.mount(b"none", hidden.encode(), b"tmpfs", 0, None) != 0:
                os._exit(126)
        if ns_pid is not None:
            fd = os.open(f"/proc/{ns_pid}/ns/net", os.O_RDONLY)
            if LIBC.setns(fd, CLONE_NEWNET) != 0:
                os._exit(126)
            os.close(fd)
        if cgroup is not None:
            with open(f"{cgroup}/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(126)
    return enter


def wait_for(what, predicate, seconds=DEADLINE, every=0.1):
    """The first true value of predicate(); the failure names what never came."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(every)


class Daemon:
    """One holdfastd. `args` are its options besides --root and --name."""

    def __init__(self, cluster, name, args=(), env=None, ns_pid=None, cgroup=None, root=None, hidden=None):
        self.cluster, self.name, self.args, self.env = cluster, name, list(args), env or {}
        self.ns_pid, self.cgroup, self.root, self.hidden = ns_pid, cgroup, root or cluster.root, hidden
        self.process = None
        self.log = cluster.w.path(f"{name}.{len(cluster.daemons)}.log")
        self.kept = False    # restarted when it ends, as an init system would
        self.starts = 0

    def start(self, *extra):
        assert not self.running(), f"{self.name} is running"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [HOLDFASTD, "--root", self.root, "--name", self.name, *self.args, *extra], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env={**os.environ, **self.env}, preexec_fn=dies_with_us(self.ns_pid, self.cgroup, self.hidden))
        self.starts += 1
        return self

    @property
    def pid(self):
        return self.process.pid

    def running(self):
        return self.process is not None and self.process.poll() is None

    def workers(self):
        return [p for p in h.children(self.pid) if self.running() and h.state(p) not in "ZX"]

    def kill(self, sig=signal.SIGKILL):
        """Sends a signal to the daemon alone; waits for its end if the signal cannot be caught."""
        if not self.running():
            return False
        workers = h.children(self.pid)
        self.process.send_signal(sig)
        if sig == signal.SIGKILL:
            self.process.wait()
            h.assert_no_orphans(workers)
        return True

    def pause(self):
        """The daemon first, then its workers: nobody is left to notice that the others stand still."""
        self.paused = [self.pid]
        os.kill(self.pid, signal.SIGSTOP)
        for p in self.workers():
            if h.kill(p, signal.SIGSTOP):
                self.paused.append(p)

    def wake(self, workers_first=0):
        """Everybody; the daemon so many seconds after its workers."""
        for p in self.paused[1:]:
            h.kill(p, signal.SIGCONT)
        time.sleep(workers_first)
        h.kill(self.paused[0], signal.SIGCONT)

    def end(self, seconds=60):
        """Waits for its end; the exit status."""
        return self.process.wait(timeout=seconds)

    def said(self):
        try:
            with open(self.log, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def wait_said(self, pattern, seconds=DEADLINE, since=0):
        def look():
            found = re.search(pattern, self.said()[since:])
            assert found or self.running(), f"{self.name} ended with {self.process.returncode} and never said /{pattern}/:\n{self.said()[-3000:]}"
            return found
        return wait_for(f"{self.name} says /{pattern}/", look, seconds)


class Keeper(threading.Thread):
    """Starts daemons again that ended, after a moment, as systemd does with Restart=always."""

    def __init__(self, cluster, pause=0.3):
        super().__init__(daemon=True)
        self.cluster, self.pause, self.stop = cluster, pause, threading.Event()

    def run(self):
        while not self.stop.wait(self.pause):
            with self.cluster.lock:
                for d in self.cluster.daemons:
                    if d.kept and not d.running() and not self.stop.is_set():
                        d.start()


class Cluster:
    """A workspace (model, tokens), a root, daemons. `with Cluster(...) as c:`"""

    def __init__(self, name, suspect=4, samples=8, length=32, **model):
        self.w = h.Workspace(name, **model)
        h.make_tokens(self.w.calib, samples=samples, length=length, vocab=model.get("vocab", 256))
        self.samples, self.length = samples, length
        self.root = self.w.path("root")
        self.suspect = suspect
        self.daemons, self.helpers = [], []
        self.lock = threading.RLock()
        self.keeper = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.keeper:
            self.keeper.stop.set()
            self.keeper.join()
        if exc[0] is not None:
            self.explain()
        for d in self.daemons:
            if d.running():
                d.process.kill()
                d.process.wait()
        for p in self.helpers:
            if p.poll() is None:
                p.kill()
            p.wait()
        self.w.__exit__(*exc)

    def explain(self):
        try:
            print(h.run([h.JOBCTL, "--root", self.root, "status"], timeout=60).stdout[-4000:], file=sys.stderr)
        except Exception as e:  # what is explained must not be hidden by the explanation
            print("no status:", e, file=sys.stderr)
        for d in self.daemons:
            state = "running" if d.running() else f"ended with {d.process.returncode}" if d.process else "never started"
            print(f"--- {d.name} ({state}, started {d.starts} times)\n{d.said()[-3000:]}", file=sys.stderr)

    # ---- nodes

    def node(self, name, *args, start=True, **more):
        options = ["--suspect", str(self.suspect)]
        if "--device" not in args:
            options += ["--device", "cpu"]
        if "--threads" not in args:
            options += ["--threads", "1"]
        if "--memory" not in args:
            options += ["--memory", "2GiB"]
        d = Daemon(self, name, [*options, *args], **more)
        with self.lock:
            self.daemons.append(d)
            if start:
                d.start()
        return d

    def nodes(self, count, *args, **more):
        """n1, n2, ...; returns when all of them have joined the root."""
        started = [self.node(f"n{i + 1}", *args, **more) for i in range(count)]
        self.wait_spoken(*started)
        return started

    def wait_spoken(self, *daemons):
        """Until each of these (in their present lives) has said something in the root."""
        def look():
            for d in daemons:
                assert d.running(), f"{d.name} ended with {d.process.returncode}: {d.said()[-2000:]}"
            said = self.beats()
            return all(d.name in said and said[d.name]["pid"] == d.pid for d in daemons)
        wait_for(f"a beat of {', '.join(d.name for d in daemons)}", look)

    def keep(self, *daemons):
        for d in daemons:
            d.kept = True
        if not self.keeper:
            self.keeper = Keeper(self)
            self.keeper.start()

    def end_all(self, sig=signal.SIGKILL):
        for d in self.daemons:
            d.kill(sig)

    # ---- jobctl

    def jobctl(self, *args, check=0, timeout=DEADLINE, **more):
        return h.run([h.JOBCTL, "--root", self.root, *args], check=check, timeout=timeout, **more)

    def submit_args(self, out, *extra, source=None):
        length = ["--seq-len", str(self.length)] if "--seq-len" not in extra else []
        return ["submit", "--source", source or self.w.model, "--calib", self.w.calib, "--out", self.w.path(out), "--name", out, *length, *extra]

    def submit(self, out, *extra, source=None):
        """Submits the job called `out` with the output directory of that name; returns its id."""
        p = self.jobctl(*self.submit_args(out, *extra, source=source))
        found = re.search(r"\b[0-9a-f]{12}\b", p.stdout)
        assert found, f"submit printed no job id: {p.stdout!r}"
        return found.group(0)

    def golden(self, *extra):
        """The same job by `jobctl run`, one process, one stage."""
        return self.w.make_golden("--threads", "1", "--seq-len", str(self.length), *extra)

    def status(self, *args):
        return json.loads(self.jobctl("status", *args, "--json").stdout)

    def job(self, job):
        """What status says of one job."""
        s = self.status(job)
        return s["jobs"][0] if "jobs" in s else s

    def wait_job(self, job, state="done", seconds=DEADLINE):
        last = {}

        def look():
            nonlocal last
            last = self.job(job)
            if last["state"] == state:
                return last
            assert last["state"] not in ("failed", "refused", "cancelled", "done"), f"job {job}: {last['state']}, not {state}: {last.get('detail')}"
            return None
        try:
            return wait_for(f"job {job} is {state}", look, seconds, 0.25)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{json.dumps(last, indent=1)[:6000]}") from None

    def wait_progress(self, job, cells, seconds=DEADLINE):
        """Until so many (stage, sample) cells are committed; what status says then. A job that is done will do."""
        def look():
            j = self.job(job)
            return j if j["state"] == "done" or sum(s["samples_done"] for s in j["stages"]) >= cells else None
        return wait_for(f"{cells} cells of job {job}", look, seconds, 0.1)

    def run_dir(self, job):
        return os.path.join(self.root, "jobs", job)

    def assert_same(self, job, out):
        """The bytes of the undisturbed run, and a clean ledger."""
        self.w.assert_golden(out)
        h.run([h.JOBCTL, "fsck", self.run_dir(job), "--deep"], check=0, timeout=DEADLINE)

    def forget(self, out):
        shutil.rmtree(self.w.path(out), ignore_errors=True)

    # ---- what daemons say

    def beats(self):
        """The newest beat in the directory of each live daemon of ours, by name."""
        live = {d.pid: d for d in self.daemons if d.running()}
        found = {}
        folder = os.path.join(self.root, "beats")
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            try:
                with open(os.path.join(folder, name)) as f:
                    beat = json.load(f)
            except (OSError, ValueError):
                continue
            if beat.get("pid") in live:
                found[beat["node"]] = beat
        return found

    def coordinator(self, job):
        """The daemon whose beat says that it coordinates the job, or None."""
        for name, beat in self.beats().items():
            if job in beat.get("coordinates", []):
                return next(d for d in self.daemons if d.running() and d.name == name)
        return None

    def wait_coordinator(self, job, seconds=60):
        return wait_for(f"somebody coordinates {job}", lambda: self.coordinator(job), seconds)

    def workers(self):
        return [(d, p) for d in self.daemons for p in d.workers()]


class Net:
    """Network namespaces joined by one bridge: node i has 10.77.0.i on eth0. They have no names and die with their holders."""

    def __init__(self, cluster, count):
        self.holders = []
        for _ in range(count + 1):
            p = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stderr=subprocess.DEVNULL, preexec_fn=dies_with_us())
            self.holders.append(p)
            cluster.helpers.append(p)
        ours = os.readlink("/proc/self/ns/net")
        for p in self.holders:
            wait_for("a network namespace", lambda p=p: p.poll() is None and os.readlink(f"/proc/{p.pid}/ns/net") != ours, 10, 0.02)
        self.ip(0, "link add br0 type bridge")
        self.ip(0, "link set br0 up")
        for i in range(1, count + 1):
            self.ip(0, f"link add v{i} type veth peer name eth0 netns {self.holders[i].pid}")
            self.ip(0, f"link set v{i} master br0 up")
            self.ip(i, "link set lo up")
            self.ip(i, f"addr add {self.address(i)}/24 dev eth0")
            self.ip(i, "link set eth0 up")

    @staticmethod
    def available():
        probe = subprocess.run(["unshare", "--net", "sh", "-c", "ip link add br0 type bridge && ip link add v0 type veth peer name v1"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) if shutil.which("unshare") and shutil.which("ip") else None
        return probe is not None and probe.returncode == 0

    @staticmethod
    def address(i):
        return f"10.77.0.{i}"

    def pid(self, i):
        return self.holders[i].pid

    def ip(self, i, command):
        subprocess.run(["nsenter", "-t", str(self.holders[i].pid), "-n", "ip", *command.split()], check=True, timeout=10)

    def link(self, i, up):
        self.ip(0, f"link set v{i} {'up' if up else 'down'}")
