// Package suite runs containerd's own tests of snapshotters against a daemon's socket.
package suite

import (
	"context"
	"flag"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

var socket = flag.String("socket", "", "the daemon's socket")

func TestSnapshotter(t *testing.T) {
	if *socket == "" {
		t.Fatal("no -socket given")
	}
	connect := func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		connection, err := grpc.DialContext(ctx, dialer.DialAddress(*socket),
			grpc.WithInsecure(),
			grpc.WithContextDialer(dialer.ContextDialer), grpc.WithBlock())
		if err != nil {
			return nil, nil, err
		}
		service := snapshotsapi.NewSnapshotsClient(connection)
		return proxy.NewSnapshotter(service, "peel"), connection.Close, nil
	}
	testsuite.SnapshotterSuite(t, "peel", connect)
}
