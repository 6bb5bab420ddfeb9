package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
)

func TestFreshestInstancesAreTried(t *testing.T) {
	var list []*registry.Instance
	for i := range byte(10) {
		inst := instance(0xaa, i)
		list = append(list, &inst)
	}
	now := time.Now()
	age := func(i *registry.Instance) time.Time { return now.Add(time.Duration(i.ID[0]%7) * time.Second) }
	first := map[byte]bool{}
	for range 200 {
		var got []byte
		for _, i := range proxy.Freshest(list, age) {
			got = append(got, i.ID[0])
		}
		if len(got) != 3 {
			t.Fatalf("tries %v", got)
		}
		first[got[0]] = true
		slices.Sort(got)
		if string(got) != "\x04\x05\x06" {
			t.Fatalf("tries %v, the freshest are 4, 5 and 6", got)
		}
	}
	if len(first) != 3 {
		t.Errorf("always begins with %v", first)
	}
	if got := proxy.Freshest(list[:2], nil); len(got) != 2 {
		t.Errorf("tries %d of 2", len(got))
	}
	for i, inst := range list {
		if inst.ID[0] != byte(i) {
			t.Fatal("the snapshot's list was changed")
		}
	}
}

// dialled records which instances were dialled.
type dialled struct {
	mu  sync.Mutex
	ids []registry.InstanceID
}

func (d *dialled) add(i *registry.Instance) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ids = append(d.ids, i.ID)
}

func TestOtherInstancesAreTriedWhenOneFails(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	for name, refuse := range map[string]func(context.Context) error{
		"refused": func(context.Context) error { return syscall.ECONNREFUSED },
		"silent": func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"no peer": func(context.Context) error { return errors.New("no peer") },
	} {
		t.Run(name, func(t *testing.T) {
			b := run(t, nil, instance(0xaa, 0x11), instance(0xaa, 0x22), instance(0xaa, 0x33))
			dial := *b.dial.Load()
			b.dialWith(func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
				if i.ID != instanceID(0x22) {
					return nil, refuse(ctx)
				}
				return dial(ctx, i, port)
			})
			protocols(t, func(t *testing.T, http2 bool) {
				for range 3 {
					if got := body(t, b.get(t, http2, host(appID(0xaa), port, ""))); got != "ok" {
						t.Fatalf("%q", got)
					}
				}
			})
		})
	}
}

func TestInstancesThatAreDownAreNotTried(t *testing.T) {
	port := app(t, func(http.ResponseWriter, *http.Request) {})
	shut := instance(0xaa, 0x44)
	shut.Ports = nil
	b := run(t, nil, instance(0xaa, 0x11), instance(0xaa, 0x22), shut)
	b.down.Store(instanceID(0x11), nil)
	var log dialled
	dial := *b.dial.Load()
	b.dialWith(func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
		log.add(i)
		return dial(ctx, i, port)
	})
	for range 5 {
		body(t, b.get(t, false, host(appID(0xaa), port, "")))
	}
	if slices.ContainsFunc(log.ids, func(id registry.InstanceID) bool { return id != instanceID(0x22) }) || len(log.ids) == 0 {
		t.Errorf("dialled %v", log.ids)
	}
}

func TestInstanceNameReachesThatInstance(t *testing.T) {
	port := app(t, func(http.ResponseWriter, *http.Request) {})
	b := run(t, nil, instance(0xaa, 0x11), instance(0xaa, 0x22))
	var log dialled
	dial := *b.dial.Load()
	b.dialWith(func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
		log.add(i)
		return dial(ctx, i, port)
	})
	protocols(t, func(t *testing.T, http2 bool) {
		body(t, b.get(t, http2, host(instanceID(0x22), port, "")))
	})
	if !slices.Equal(log.ids, []registry.InstanceID{instanceID(0x22), instanceID(0x22)}) {
		t.Errorf("dialled %v", log.ids)
	}
}

func TestTheMostTellingFailureIsTold(t *testing.T) {
	b := run(t, func(c *proxy.Config) { c.DialTimeout = 700 * time.Millisecond }, instance(0xaa, 0x11), instance(0xaa, 0x22), instance(0xaa, 0x33))
	b.dialWith(func(ctx context.Context, i *registry.Instance, _ uint16) (net.Conn, error) {
		switch i.ID {
		case instanceID(0x11):
			return nil, errors.New("no peer")
		case instanceID(0x22):
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if p := problem(t, b.get(t, true, host(appID(0xaa), 80, ""))); p.Reason != proxy.AppRefused {
		t.Errorf("%+v", p)
	}
}
