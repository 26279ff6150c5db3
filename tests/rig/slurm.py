"""The made machine's cluster: a real Slurm of one node with four stand-in GPU devices; and the faults it can have.

The machine is login node, controller and compute node in one. Its cards: standin_gpu.py. Its jobs run as their users.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.rig.daemon import SLOW, Daemon, RigError, tail, wait_until
from tests.rig.lab import NAME, USERS, Lab
from tests.rig.sshd import SshRig

GPUS = 4
# The default partition; one whose jobs may last 10 minutes; one whose jobs make room for those of `main`.
PARTITIONS = ("main", "short", "spare")
_COMMANDS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"

# More processors than there are, so that it is the cards that jobs wait for. No accounting: sacct has no answer.
_CONFIG = """\
ClusterName=kernelbridge-test
SlurmctldHost={name}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort=6817
SlurmdPort=6818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=5,default_queue_depth=100
GresTypes=gpu
DefMemPerCPU=64
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
KillWait=2
MinJobAge=600
SlurmdTimeout=30
MessageTimeout=5
TCPTimeout=2
MailProg=/bin/true
NodeName={name} CPUs=16 RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={name} Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=2 PreemptMode=off State=UP
PartitionName=short Nodes={name} MaxTime=10 DefaultTime=5 PriorityTier=2 PreemptMode=off State=UP
PartitionName=spare Nodes={name} MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=CANCEL State=UP
"""


def missing_podman() -> str | None:
    """Why no rootless Podman can run here; None where it can."""
    for command, package in {"podman": "podman", "crun": "crun", "newuidmap": "uidmap"}.items():
        if shutil.which(command, path=_SBIN) is None:
            return f"{command} is missing (Debian: {package}); scripts/test installs it"
    return None


def missing_slurm() -> str | None:
    """Why no Slurm can run here; None where it can."""
    for command, package in _COMMANDS.items():
        if shutil.which(command, path=_SBIN) is None:
            return f"{command} is missing (Debian: {package}); scripts/test installs it"
    return None


class SlurmRig:
    """munged, slurmctld and slurmd in the made machine; its logins can sbatch."""

    def __init__(self, lab: Lab) -> None:
        reason = missing_slurm()
        if reason:
            raise RigError(reason)
        self.lab = lab
        self.folder = lab.path / "slurm"
        # Each is there while it runs; changed by start() and the faults below.
        self._daemons: dict[str, Daemon] = {}
        # Set by give_podman().
        self._has_podman = False
        self._write()
        self.start()

    def __repr__(self) -> str:
        return f"<SlurmRig {self.folder} {', '.join(self._daemons) or 'stopped'}>"

    def _write(self) -> None:
        for name in ("", "etc", "state", "spool", "munge", "devices"):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).chmod(0o755)
        devices = [self.folder / "devices" / f"gpu{number}" for number in range(GPUS)]
        for device in devices:
            # /dev/null by another name: Slurm only asks whether there is a device file.
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text(_CONFIG.format(name=NAME, folder=self.folder, gpus=GPUS))
        (etc / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
        # Jobs are followed by process, not by cgroup; slurmd loads the plugin all the same, and v2 would ask systemd.
        (etc / "cgroup.conf").write_text("CgroupPlugin=autodetect\nIgnoreSystemd=yes\n")
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "munge").chmod(0o700)
        for path in (self.folder / "munge", key):
            shutil.chown(path, "munge", "munge")
        self.lab.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge"])

    def start(self) -> None:
        """Slurm runs and its node takes jobs; also after close()."""
        if self._daemons:
            return
        # Where Debian's commands look, without a variable; seen in the machine alone.
        self.lab.run(["mount", "--bind", str(self.folder / "etc"), "/etc/slurm"])
        munge = self.folder / "munge"
        files = [f"--key-file={munge}/key", f"--seed-file={munge}/seed", f"--log-file={munge}/log"]
        as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        munged = self._run("munged", [*as_munge, _path("munged"), "--foreground", *files])
        munged.wait_until(lambda: self._works("munge", "-n"), "munged to answer", 15)
        self.start_controller()
        self.start_node()

    def start_controller(self) -> None:
        """slurmctld runs and answers."""
        # Given in full: slurmctld changes its folder before it reads the file.
        controller = self._run("slurmctld", [_path("slurmctld"), "-D", "-f", f"{self.folder}/etc/slurm.conf"])
        controller.wait_until(lambda: self._works("scontrol", "ping"), "slurmctld to answer", 30)

    def start_node(self) -> None:
        """slurmd runs and the controller takes jobs for it."""
        daemon = self._run("slurmd", [_path("slurmd"), "-D", "-N", NAME, "-f", f"{self.folder}/etc/slurm.conf"])
        daemon.wait_until(self._takes_jobs, "the node to take jobs", 60)

    def _run(self, name: str, words: list[str]) -> Daemon:
        if name not in self._daemons:
            self._daemons[name] = self.lab.start(name, words)
        return self._daemons[name]

    def _takes_jobs(self) -> bool:
        return self.node_state() in ("idle", "mixed", "allocated")

    def _works(self, *words: str) -> bool:
        try:
            return "DOWN" not in self.lab.run(words, seconds=10)
        except RigError:
            return False

    @property
    def log(self) -> str:
        """The last lines of the three logs, for a failed test."""
        names = ("munged", "slurmctld", "slurmd")
        return "\n".join(f"--- {name}\n{tail(self.lab.log_folder / f'{name}.log', 30)}" for name in names)

    def node_state(self) -> str:
        """Slurm's word for the node, without flags: idle, mixed, allocated, drained, down ..."""
        return self.lab.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%T"]).strip().rstrip("*~#!%$@+-^")

    def jobs(self) -> list[str]:
        """The ids of all jobs that have not ended, of all users."""
        return self.lab.run(["squeue", "-h", "-a", "-o", "%A"]).split()

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm says of a job, by key; also of one that ended a short while ago."""
        words = self.lab.run(["scontrol", "show", "job", "-o", job_id]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def job_of(self, kernel: str) -> str:
        """The id of a kernel's newest job, also of one that ended a short while ago. Raises RigError."""
        lines = self.lab.run(["squeue", "-h", "-a", "-t", "all", "-o", "%A %j"]).splitlines()
        found = [int(line.split()[0]) for line in lines if line.split()[1] == f"kernelbridge-{kernel}"]
        if not found:
            raise RigError(f"no job of kernel {kernel} among {lines}")
        return str(max(found))

    def hold(self, words: Sequence[str] = ("--gres=gpu:4",)) -> str:
        """A job of another login that runs; its id."""
        out = self.as_user(
            "kbother", ["sbatch", "--parsable", "-D", "/", "-o", "/dev/null", *words, "--wrap", "sleep 900"]
        )
        job_id = out.strip()
        wait_until(lambda: self.job(job_id)["JobState"] == "RUNNING", "the other login's job to run", 30)
        return job_id

    def traces(self) -> list[str]:
        """All that is there of kernels in jobs: jobs, steps, containers, processes, folders of the node, logs."""
        found = [f"job {job_id}" for job_id in self.jobs()]
        for process in self.lab.processes():
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if process.name() == "slurmstepd" or "/slurm_script" in words or "/run/kernelbridge" in words:
                    found.append(f"process {process.name()}: {words[:80]}")
        return found + [str(path) for path in [*(self.lab.path / "tmp").glob("kernelbridge-*"), *self.logs()]]

    def logs(self) -> list[Path]:
        """The files with what jobs of kernels printed."""
        return list((self.lab.home("kbtest") / ".cache/kernelbridge/jobs").glob("kernelbridge-*"))

    def end_by_time(self, job_id: str) -> None:
        """The job's time is over in a moment. The controller sees it when it looks next, which it does every 30 s."""
        self.lab.run(["scontrol", "update", f"jobid={job_id}", "endtime=now+2seconds"])

    def sweep(self) -> list[str]:
        """Cancel every job and say which were there; the node is idle at the end, and no log of a job is left."""
        left = self.jobs()
        if left:
            self.lab.run(["scancel", *left])
            wait_until(lambda: not self.jobs(), "the jobs to end", 30)
        for path in self.logs():
            path.unlink()
        return left

    @contextmanager
    def controller_stopped(self) -> Iterator[None]:
        """Nobody answers sbatch, squeue and scontrol; jobs run on. Started again at the end."""
        self._daemons.pop("slurmctld").stop()
        try:
            yield
        finally:
            self.start_controller()

    @contextmanager
    def controller_stuck(self) -> Iterator[None]:
        """The controller takes connections and answers nothing, as one that is overloaded."""
        daemon = self._daemons["slurmctld"]
        daemon.main().suspend()
        try:
            yield
        finally:
            # nsenter stops itself when its child is stopped.
            for process in daemon.tree():
                process.resume()

    @contextmanager
    def node_drained(self) -> Iterator[None]:
        """The node takes no new jobs; what runs there runs on."""
        self.lab.run(["scontrol", "update", f"nodename={NAME}", "state=drain", "reason=test"])
        try:
            yield
        finally:
            self.lab.run(["scontrol", "update", f"nodename={NAME}", "state=resume"])
            wait_until(self._takes_jobs, "the node to take jobs", 60)

    def fail_node(self) -> None:
        """The node is down for the controller, which ends its jobs; back with revive_node()."""
        self.lab.run(["scontrol", "update", f"nodename={NAME}", "state=down", "reason=test"])

    def revive_node(self) -> None:
        """The node takes jobs again; it may have come back by itself, as its slurmd still answers."""
        if not self._takes_jobs():
            with suppress(RigError):
                self.lab.run(["scontrol", "update", f"nodename={NAME}", "state=resume"])
        wait_until(self._takes_jobs, "the node to take jobs", 60)

    @contextmanager
    def node_open(self, private_key: Path, sshd: SshRig) -> Iterator[None]:
        """Login kbtest gets from the login node to the compute node by ssh, without a password."""
        home = self.lab.home("kbtest")
        uid, folder = home.stat().st_uid, home / ".ssh"
        folder.mkdir(mode=0o700)
        shutil.copy(private_key, folder / "id_ed25519")
        (folder / "known_hosts").write_text(sshd.known_hosts_line(NAME, sshd.port))
        (folder / "config").write_text(f"Host {NAME}\n  Port {sshd.port}\n")
        for path in (folder, *folder.iterdir()):
            os.chown(path, uid, uid)
        (folder / "id_ed25519").chmod(0o600)
        try:
            yield
        finally:
            shutil.rmtree(folder)

    def give_podman(self, archive: Path) -> None:
        """Login kbtest has rootless Podman with the image of a `docker save`. It stays until the machine ends."""
        if self._has_podman:
            return
        for file in ("subuid", "subgid"):
            (self.folder / file).write_text("kbtest:300000:65536\n")
            self.lab.run(["mount", "--bind", str(self.folder / file), f"/etc/{file}"])
        # crun refuses this machine's mixture of both kinds of cgroups; jobs and dockerd do not need the second kind.
        if os.path.ismount("/sys/fs/cgroup/unified"):
            self.lab.run(["umount", "/sys/fs/cgroup/unified"])
        home = self.lab.home("kbtest")
        uid = home.stat().st_uid
        config = home / ".config/containers"
        config.mkdir(parents=True)
        storage = f'driver = "overlay"\ngraphroot = "{home}/podman"\nrunroot = "/tmp/podman-kbtest"\n'
        (config / "storage.conf").write_text(f"[storage]\n{storage}")
        engine = 'runtime = "crun"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        (config / "containers.conf").write_text(f"[engine]\n{engine}")
        for path in (home / ".config", config, *config.iterdir()):
            os.chown(path, uid, uid)
        archive.chmod(0o644)
        self.as_user("kbtest", ["podman", "load", "-q", "-i", str(archive)], seconds=300)
        self._has_podman = True

    def as_user(self, name: str, words: Sequence[str], *, seconds: float = 60.0) -> str:
        """Run a command in the machine as one of its logins, without ssh."""
        user = next(user for user in USERS if user.name == name)
        ids = [f"--reuid={user.uid}", f"--regid={user.uid}", "--init-groups"]
        clean = ["env", "-i", f"HOME={self.lab.home(name)}", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
        return self.lab.run(["setpriv", *ids, *clean, *words], seconds=seconds)

    def close(self) -> None:
        """End every job, then Slurm; its files go with the machine. Safe to call twice."""
        if not self._daemons:
            return
        try:
            self.sweep()
        except RigError as error:  # what is left dies with the made machine
            print(f"the jobs could not be swept: {error}")
        # They end a moment after their jobs, and are no children of slurmd.
        _gone, alive = psutil.wait_procs(self.lab.processes_named("slurmstepd"), timeout=10 * SLOW)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self._daemons:
                self._daemons.pop(name).stop()
        self.lab.run(["umount", "/etc/slurm"])


def _path(command: str) -> str:
    found = shutil.which(command, path=_SBIN)
    if found is None:
        raise RigError(f"{command} is missing")
    return found
