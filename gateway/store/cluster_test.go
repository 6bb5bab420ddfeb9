package store_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dstack.host/gateway/store"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// cluster is an etcd that is reached through a socket.
type cluster struct {
	endpoint string
	dir      string
	tls      bool
	etcd     *embed.Etcd
}

// startCluster starts one on loopback, at a port that is free, with TLS where scheme is https.
func startCluster(t *testing.T, scheme string) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), tls: scheme == "https"}
	c.start(t, "127.0.0.1:0")
	t.Cleanup(c.stop)
	return c
}

func (c *cluster) start(t *testing.T, address string) {
	t.Helper()
	scheme := "http"
	if c.tls {
		scheme = "https"
	}
	config := embed.NewConfig()
	config.Name = "external"
	config.Dir = c.dir
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	config.ListenPeerUrls = nil
	config.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Host: "external"}}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.ListenClientUrls = []url.URL{{Scheme: scheme, Host: address}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ClientAutoTLS = c.tls
	config.EnableGRPCGateway = false
	config.TickMs, config.ElectionMs = 20, 200
	config.BcryptCost = 4 // for speed
	var err error
	if c.etcd, err = embed.StartEtcd(config); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.etcd.Server.ReadyNotify():
	case <-time.After(20 * time.Second):
		t.Fatal("etcd does not start")
	}
	c.endpoint = scheme + "://" + c.etcd.Clients[0].Addr().String()
}

func (c *cluster) stop() {
	if c.etcd != nil {
		c.etcd.Close()
		c.etcd = nil
	}
}

func (c *cluster) restart(t *testing.T) {
	t.Helper()
	u, err := url.Parse(c.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	c.start(t, u.Host)
}

func (c *cluster) open(t *testing.T, change ...func(*store.Config)) *store.Store {
	t.Helper()
	return open(t, append([]func(*store.Config){func(config *store.Config) {
		config.DataDir = ""
		config.Endpoints = []string{c.endpoint}
		config.Timeout = 5 * time.Second
	}}, change...)...)
}

// roots trusts the certificate that etcd made for itself.
func (c *cluster) roots(t *testing.T) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(c.dir, "fixtures", "client", "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

func TestExternalClusterIsShared(t *testing.T) {
	c := startCluster(t, "http")
	a, b := c.open(t), c.open(t)
	w := watch(t, b, "")
	w.until(t, map[string]string{})
	commit(t, a, store.Put("x", []byte("1")))
	w.until(t, map[string]string{"x": "1"})
	commit(t, b, store.Put("x", []byte("2")))
	if e, err := a.Get(t.Context(), "x"); err != nil || string(e.Value) != "2" {
		t.Errorf("%q, error %v", e.Value, err)
	}
}

func TestExternalClusterWithTLSAndPassword(t *testing.T) {
	c := startCluster(t, "https")
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{c.endpoint}, TLS: c.roots(t), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := admin.UserAdd(ctx, "root", "right"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.UserGrantRole(ctx, "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	config := store.Config{Endpoints: []string{c.endpoint}, TLS: c.roots(t), Key: testKey, Timeout: 5 * time.Second, Username: "root", Password: "wrong"}
	_, err = store.Open(ctx, config)
	wantError(t, err, store.ErrUnavailable)

	config.Password = "right"
	s, err := store.Open(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	commit(t, s, store.Put("x", []byte("1")))

	config.Username, config.Password = "", ""
	stranger, err := store.Open(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_, err = stranger.Get(ctx, "x")
	wantError(t, err, store.ErrUnavailable)
}

func TestClusterThatIsAwayIsUnavailableAndComesBack(t *testing.T) {
	c := startCluster(t, "http")
	short := func(config *store.Config) { config.Timeout = 300 * time.Millisecond }
	a, b := c.open(t, short), c.open(t, short)
	w := watch(t, a, "")
	commit(t, a, store.Put("x", []byte("1")))
	w.until(t, map[string]string{"x": "1"})

	c.stop()
	start := time.Now()
	_, err := a.Get(t.Context(), "x")
	wantError(t, err, store.ErrUnavailable)
	_, err = a.Commit(t.Context(), nil, []store.Op{store.Put("x", nil)})
	wantError(t, err, store.ErrUnavailable)
	_, _, err = a.List(t.Context(), "")
	wantError(t, err, store.ErrUnavailable)
	_, err = a.Lock(t.Context(), "x")
	wantError(t, err, store.ErrUnavailable)
	wantError(t, a.Ping(t.Context()), store.ErrUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = a.Get(ctx, "x")
	wantError(t, err, store.ErrUnavailable)
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("took %v", took)
	}

	c.restart(t)
	for {
		_, err := b.Commit(t.Context(), nil, []store.Op{store.Put("y", []byte("2"))})
		if err == nil {
			break
		}
		wantError(t, err, store.ErrUnavailable)
	}
	w.until(t, map[string]string{"x": "1", "y": "2"})
}

func TestOpenOfAClusterThatIsAwaySucceeds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s := open(t, func(c *store.Config) {
		c.DataDir, c.Endpoints, c.Timeout = "", []string{"http://" + l.Addr().String()}, 200*time.Millisecond
	})
	_, err = s.Get(t.Context(), "x")
	wantError(t, err, store.ErrUnavailable)
}
