"""Two nodes of one process each on this machine: in two network namespaces joined by a cable, or on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Place:
    """Where two nodes are.

    Attributes:
        prefixes: of each node's commands.
        address: of the first node.
        interfaces: of each node's connection to the other.
    """

    prefixes: list[list[str]]
    address: str
    interfaces: list[str]

    def cut(self) -> None:
        """Takes the cable out of the second node."""
        subprocess.run([*self.prefixes[1], "ip", "link", "set", self.interfaces[1], "down"], check=True)

    def start(self, rank: int, launcher: str, arguments: list[str], log: Path) -> subprocess.Popen:
        """Starts `mm ARGUMENTS` on a node, by torchrun or as Slurm does; what it prints goes to `log`."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.interfaces[rank]}
        if launcher == "torchrun":
            meeting = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"]
            meeting += [f"--master-addr={self.address}", f"--master-port={self.port}"]
            words = ["-m", "torch.distributed.run", *meeting, "-m", "--", "mm_lightning.cli", *arguments]
        else:
            words = ["-m", "mm_lightning.cli", *arguments]
            environment |= {
                "SLURM_JOB_ID": str(self.port - 15000),
                "SLURM_JOB_NAME": "train",
                "SLURM_NTASKS": "2",
                "SLURM_NTASKS_PER_NODE": "1",
                "SLURM_NNODES": "2",
                "SLURM_NODELIST": self.address,
                "SLURM_PROCID": str(rank),
                "SLURM_NODEID": str(rank),
                "SLURM_LOCALID": "0",
            }
        command = [*self.prefixes[rank], sys.executable, *words]
        with log.open("w") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def __post_init__(self) -> None:
        # Lightning takes 15000 and the last four digits of the job's number under Slurm.
        self.port = next(port for port in range(15000 + os.getpid() % 9000, 25000) if free(port))


def free(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) != 0


def loopback() -> Place:
    return Place([[], []], "127.0.0.1", ["lo", "lo"])


class Namespaces:
    """Two namespaces for as long as it is entered; entering raises OSError where they are not allowed."""

    def __init__(self) -> None:
        self.names = [f"mm{os.getpid()}{end}" for end in "ab"]

    def __enter__(self) -> Place:
        if not shutil.which("ip") or os.geteuid():
            raise OSError("network namespaces need root and the command ip")
        try:
            for name in self.names:
                self.ip("netns", "add", name)
            first, second = self.names
            self.ip("link", "add", "mm0", "netns", first, "type", "veth", "peer", "name", "mm1", "netns", second)
            for n, name in enumerate(self.names):
                self.ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", f"mm{n}")
                self.ip("-n", name, "link", "set", f"mm{n}", "up")
                self.ip("-n", name, "link", "set", "lo", "up")
        except OSError:
            self.__exit__()
            raise
        return Place([["ip", "netns", "exec", name] for name in self.names], "10.77.0.1", ["mm0", "mm1"])

    def __exit__(self, *error: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    @staticmethod
    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
