"""Everything that takes part, in the order of the table."""

from harness.peers import parts, redis, replicated, ringraft

PEERS = [
    ringraft.Cluster(),
    replicated.OpenRaft(),
    replicated.JRaft(),
    replicated.Etcd(),
    replicated.Dragonboat(),
    replicated.ZooKeeper(),
    ringraft.CounterServer(),
    redis.Redis(),
    ringraft.Ring(),
    *parts.RUST_RINGS,
    parts.LmaxRing(),
    ringraft.Log(),
    parts.RaftEngine(),
    parts.RocksDb(),
]
