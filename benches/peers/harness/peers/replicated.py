"""The other replicated systems."""

import os

from harness import tools
from harness.peers import base
from harness.processes import ask, free_ports

# Beyond the measured window: starting, warming up, stopping.
SPARE_SECONDS = 90


class OpenRaft(base.RustPeer):
    """openraft with a log in memory and function calls for a network, as in its own benchmark."""

    key = "openraft"
    name = "openraft"
    package = "openraft-driver"
    cases = base.REPLICATED
    conditions = "{version}; NOT durable, NO network: memory store, function calls; one process; a task for each in flight"

    def measure(self, case, seconds, processes):
        argv = [tools.rust_driver("openraft-driver"), *base.shape(case, seconds)]
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


class JRaft(base.JavaPeer):
    """SOFAJRaft: three nodes in one virtual machine."""

    key = "jraft"
    name = "SOFAJRaft"
    module = "jraft"
    cases = base.REPLICATED
    conditions = "{version}; three nodes and the load in one JVM, loopback; default options: RocksDB log, sync on; 20 s warm-up"

    def measure(self, case, seconds, processes):
        argv = self.java("JRaft", "--data", processes.directory, *base.shape(case, seconds))
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


class Etcd(base.GoPeer):
    """etcd: three servers, put by a Go client through the leader."""

    key = "etcd"
    name = "etcd"
    program = "etcd"
    cases = base.REPLICATED
    conditions = "{version}; three processes and a client, loopback; put on the leader; default options: fsync on; 2 s warm-up"

    def tool_missing(self):
        if tools.missing("etcd"):
            return "no etcd: Debian's etcd-server, by hand"
        return super().tool_missing()

    def measure(self, case, seconds, processes):
        ports = free_ports(6)
        clients, peers = ([f"http://127.0.0.1:{port}" for port in half] for half in (ports[:3], ports[3:]))
        members = ",".join(f"node{i}={peer}" for i, peer in enumerate(peers))
        for i, (client, peer) in enumerate(zip(clients, peers)):
            options = {
                "name": f"node{i}",
                "data-dir": f"{processes.directory}/node-{i}",
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": members,
                "initial-cluster-state": "new",
                "initial-cluster-token": f"peers-{os.getpid()}",
                "log-level": "error",
            }
            processes.start(f"etcd-{i}", ["etcd", *(f"--{name}={value}" for name, value in options.items())])
        endpoints = ",".join(client.removeprefix("http://") for client in clients)
        argv = [tools.go_driver("etcd"), "--endpoints", endpoints, "--cpu-of", processes.pids()]
        report = base.last_json(processes.run([*argv, *base.shape(case, seconds)], seconds + SPARE_SECONDS))
        processes.check()
        return report


class Dragonboat(base.GoPeer):
    """dragonboat: three NodeHosts in one process."""

    key = "dragonboat"
    name = "dragonboat"
    program = "dragonboat"
    cases = base.REPLICATED
    conditions = "{version}; three NodeHosts and the load in one process, loopback; default options: pebble log, sync on; 2 s warm-up"

    def measure(self, case, seconds, processes):
        argv = [tools.go_driver("dragonboat"), "--data", processes.directory, *base.shape(case, seconds)]
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


class ZooKeeper(base.JavaPeer):
    """ZooKeeper: three servers, setData by an asynchronous client of the leader."""

    key = "zookeeper"
    name = "ZooKeeper"
    module = "zookeeper"
    cases = base.REPLICATED
    conditions = "{version}; three JVMs and a client, loopback; setData on the leader, a session for 64 in flight, at most 16; default options: forceSync on; 20 s warm-up"

    def measure(self, case, seconds, processes):
        clients = free_ports(9)
        quorum, election = clients[3:6], clients[6:]
        clients = clients[:3]
        for id, client in enumerate(clients, 1):
            data = f"{processes.directory}/node-{id}"
            os.mkdir(data)
            with open(f"{data}/myid", "w", encoding="utf-8") as file:
                file.write(f"{id}\n")
            lines = [
                f"dataDir={data}",
                f"clientPort={client}",
                "clientPortAddress=127.0.0.1",
                # As in the configuration that it ships.
                "tickTime=2000",
                "initLimit=10",
                "syncLimit=5",
                "admin.enableServer=false",
                "4lw.commands.whitelist=srvr",
                *(f"server.{i}=127.0.0.1:{q}:{e}" for i, (q, e) in enumerate(zip(quorum, election), 1)),
            ]
            with open(f"{data}/zoo.cfg", "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
            # Its start script gives the same heap.
            flags = ["-Xmx1000m", "-cp", tools.java_path(self.module)]
            main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
            processes.start(f"zookeeper-{id}", ["java", *flags, main, f"{data}/zoo.cfg"])

        def leader():
            return next((port for port in clients if "Mode: leader" in ask(port, b"srvr\n")), None)

        port = processes.wait_for("leader", leader, 60)
        argv = self.java("ZooKeeperLoad", "--server", f"127.0.0.1:{port}", "--cpu-of", processes.pids())
        report = base.last_json(processes.run([*argv, *base.shape(case, seconds)], seconds + SPARE_SECONDS))
        report["version"] = report["version"].split("-")[0]
        processes.check()
        return report
