// Three dragonboat NodeHosts in this process, one group over loopback, under load on its leader.
//
// Options are dragonboat's defaults: its pebble log, flushed before every acknowledgement; no
// snapshots, as the run is short. A goroutine an operation in flight, as its README's figures have it.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/statemachine"
	"peers/load"
)

const shard = 1

// counter counts the commands that it is given.
type counter struct{ count uint64 }

func (c *counter) Update(statemachine.Entry) (statemachine.Result, error) {
	c.count++
	return statemachine.Result{Value: c.count}, nil
}

func (c *counter) Lookup(any) (any, error) { return c.count, nil }

func (c *counter) SaveSnapshot(w io.Writer, _ statemachine.ISnapshotFileCollection, _ <-chan struct{}) error {
	return binary.Write(w, binary.LittleEndian, c.count)
}

func (c *counter) RecoverFromSnapshot(r io.Reader, _ []statemachine.SnapshotFile, _ <-chan struct{}) error {
	return binary.Read(r, binary.LittleEndian, &c.count)
}

func (c *counter) Close() error { return nil }

func main() {
	data := flag.String("data", "", "where the three nodes keep their data")
	options := load.Flags()
	if *data == "" {
		load.Fail("--data names no directory")
	}
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "logdb", "config", "tan", "util", "server", "settings", "raftpb", "pebblekv"} {
		logger.GetLogger(name).SetLevel(logger.ERROR)
	}
	hosts := start(*data)
	host := leader(hosts)
	session := host.GetNoOPSession(shard)
	command := make([]byte, options.Payload)
	load.Run(options, map[string]any{"version": version()}, func(int) error {
		request, err := host.Propose(session, command, 20*time.Second)
		if err != nil {
			return err
		}
		defer request.Release()
		if result := <-request.ResultC(); !result.Completed() {
			return errors.New("a proposal was not completed")
		}
		return nil
	})
	for _, host := range hosts {
		host.Close()
	}
}

func start(data string) []*dragonboat.NodeHost {
	members := map[uint64]dragonboat.Target{}
	for id, addr := range freeAddrs(3) {
		members[uint64(id+1)] = addr
	}
	hosts := make([]*dragonboat.NodeHost, len(members))
	for i := range hosts {
		id := uint64(i + 1)
		dir := filepath.Join(data, fmt.Sprintf("node-%d", id))
		host, err := dragonboat.NewNodeHost(config.NodeHostConfig{
			NodeHostDir:    dir,
			WALDir:         dir,
			RTTMillisecond: 50,
			RaftAddress:    members[id],
		})
		if err != nil {
			load.Fail("starting node %d: %v", id, err)
		}
		create := func(uint64, uint64) statemachine.IStateMachine { return &counter{} }
		err = host.StartReplica(members, false, create, config.Config{
			ShardID:      shard,
			ReplicaID:    id,
			CheckQuorum:  true,
			ElectionRTT:  20,
			HeartbeatRTT: 2,
		})
		if err != nil {
			load.Fail("starting the replica of node %d: %v", id, err)
		}
		hosts[i] = host
	}
	return hosts
}

// freeAddrs asks for free ports and gives them back: another process may take one in between, and
// then the start fails and says so.
func freeAddrs(count int) []string {
	addrs := make([]string, count)
	for i := range addrs {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			load.Fail("a free port: %v", err)
		}
		defer listener.Close()
		addrs[i] = listener.Addr().String()
	}
	return addrs
}

func leader(hosts []*dragonboat.NodeHost) *dragonboat.NodeHost {
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if id, _, valid, err := hosts[0].GetLeaderID(shard); err == nil && valid {
			return hosts[id-1]
		}
		time.Sleep(10 * time.Millisecond)
	}
	load.Fail("no leader after 30 s")
	return nil
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/lni/dragonboat/v4" {
				return module.Version
			}
		}
	}
	return "unknown"
}
