// Puts values into an etcd cluster that is running, through its leader, with a number of puts in
// flight.
//
// etcd's own benchmark does the same with --target-leader: a goroutine a put in flight, over few
// connections (one for every 64 puts).
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"peers/load"
)

func main() {
	endpoints := flag.String("endpoints", "", "client addresses of the members, separated by commas")
	options := load.Flags()
	leader, version := findLeader(strings.Split(*endpoints, ","))
	clients := make([]*clientv3.Client, (options.Inflight+63)/64)
	for i := range clients {
		clients[i] = connect(leader)
		defer clients[i].Close()
	}
	value := make([]byte, options.Payload)
	_, _ = rand.Read(value)
	keys := make([]string, options.Inflight)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%06d", i)
	}
	facts := map[string]any{"version": version, "connections": len(clients)}
	load.Run(options, facts, func(worker int) error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_, err := clients[worker%len(clients)].Put(ctx, keys[worker], string(value))
		return err
	})
}

func connect(endpoint string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		load.Fail("connecting to %s: %v", endpoint, err)
	}
	return client
}

// findLeader waits until a member says that it leads.
func findLeader(endpoints []string) (string, string) {
	deadline := time.Now().Add(30 * time.Second)
	var last error
	for time.Now().Before(deadline) {
		for _, endpoint := range endpoints {
			client := connect(endpoint)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			status, err := client.Status(ctx, endpoint)
			cancel()
			client.Close()
			if err != nil {
				last = err
			} else if status.Leader != 0 && status.Leader == status.Header.MemberId {
				return endpoint, status.Version
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	load.Fail("none of %v leads after 30 s; the last error: %v", endpoints, last)
	return "", ""
}
