package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

const (
	quota = 8 << 30 // the most that etcd recommends

	// An embedded etcd has one member and elects nobody, so it need not wait long before it votes for itself.
	tick     = 50 // ms
	election = 10 * tick

	maintainEvery = 10 * time.Minute
	// Compaction leaves free pages in the database file; they are given back when they are many and the greater part.
	defragFrom = 128 << 20

	closeTimeout = 10 * time.Second
)

// embedded is an etcd of one member in this process. It listens on no socket.
type embedded struct {
	etcd *embed.Etcd
	lock *fileutil.LockedFile
	log  *slog.Logger
}

func startEmbedded(ctx context.Context, c Config, log *slog.Logger) (*embedded, error) {
	dir, lock, err := claim(c.DataDir)
	if err != nil {
		return nil, fmt.Errorf("store: data directory: %w", err)
	}
	e := &embedded{lock: lock, log: log}
	if e.etcd, err = start(embedConfig(orDefault(c.Name, "gateway"), dir, log)); err != nil {
		return nil, errors.Join(fmt.Errorf("store: embedded etcd: %w", err), lock.Close())
	}
	select {
	case <-e.etcd.Server.ReadyNotify():
		return e, nil
	case err = <-e.etcd.Err():
	case <-e.etcd.Server.StopNotify():
		err = errors.New("stopped while starting")
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(fmt.Errorf("store: embedded etcd: %w", err), e.close())
}

// claim makes the directory for etcd, private to its owner, and keeps other processes out of it.
func claim(dataDir string) (string, *fileutil.LockedFile, error) {
	dir := filepath.Join(dataDir, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", nil, fmt.Errorf("%s has mode %#o, which lets others in; chmod 700 it", dir, mode)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		err = fmt.Errorf("%s is in use by another gateway", dir)
	}
	return dir, lock, err
}

func embedConfig(name, dir string, log *slog.Logger) *embed.Config {
	c := embed.NewConfig()
	c.Name = name
	c.Dir = dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(log))
	// A member must have a peer URL, though nobody ever connects to it.
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Host: "embedded"}}
	c.InitialCluster = c.InitialClusterFromName(name)
	c.EnableGRPCGateway = false
	c.TickMs, c.ElectionMs = tick, election
	c.QuotaBackendBytes = quota
	c.MaxRequestBytes = 2 * MaxValue
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	c.BootstrapDefragThresholdMegabytes = defragFrom >> 20
	return c
}

// start runs embed.StartEtcd where a Goexit of etcd's logger (see newZap) ends nobody else's goroutine.
func start(c *embed.Config) (etcd *embed.Etcd, err error) {
	done := make(chan struct{})
	err = errors.New("gave up; its log says why")
	go func() {
		defer close(done)
		etcd, err = embed.StartEtcd(c)
	}()
	<-done
	return etcd, err
}

// client returns a client that calls the server's functions.
func (e *embedded) client() *clientv3.Client { return v3client.New(e.etcd.Server) }

// maintain gives back disk space until ctx ends.
func (e *embedded) maintain(ctx context.Context, client *clientv3.Client) {
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := e.defragment(ctx, client, needsDefrag); err != nil && ctx.Err() == nil {
			e.log.Warn("database could not be defragmented", "error", err)
		}
	}
}

// defragment rewrites the database file if need be, and lets etcd write again if it had run out of space before. It
// goes to the backend itself, because the client of a server in the same process panics on Defragment.
func (e *embedded) defragment(ctx context.Context, client *clientv3.Client, need func(size, used int64) bool) error {
	backend := e.etcd.Server.Backend()
	if !need(backend.Size(), backend.SizeInUse()) {
		return nil
	}
	if err := backend.Defrag(); err != nil || backend.Size() > quota/2 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, maintainEvery)
	defer cancel()
	_, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	return err
}

func needsDefrag(size, used int64) bool { return size >= defragFrom && used < size/2 }

// close stops etcd, and gives up on one that does not stop.
func (e *embedded) close() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.etcd.Close()
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-done:
		return e.lock.Close()
	case <-timer.C:
		return errors.New("store: embedded etcd does not stop") // and keeps its lock
	}
}
